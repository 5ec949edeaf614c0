"""The pictures of a run: their file names, how they are written and read, what judges said."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from palimpsest.core import processes
from palimpsest.core.atomic import whole
from palimpsest.core.errors import PalimpsestError, check_finite
from palimpsest.core.files import component
from palimpsest.core.locks import Tell
from palimpsest.core.lots import lots
from palimpsest.core.processes import Alone
from palimpsest.core.progress import Task
from palimpsest.core.prompts import Prompt
from palimpsest.data.images import read_picture
from palimpsest.judge.references import Entry
from palimpsest.methods import Context
from palimpsest.runs.folder import Run
from palimpsest.runs.rows import Drawn, Scored

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.models.elsewhere import Model

AGAIN = "remove it and run the same command again"


def picture_name(prompt: Prompt) -> str:
    """Return a prompt's file name: a readable start, then a digest of all it depends on."""
    key = f"{prompt.text}|{prompt.seed}|{prompt.index}|{prompt.guidance}"
    return f"images/{words(prompt)}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.png"


def words(prompt: Prompt) -> str:
    """Return the start of a prompt's text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.text.lower()).strip("-")[:40]


def title(text: str) -> str:
    """Return a text as a part of a folder's name: legal everywhere, at most 80 letters long."""
    return component(text)


def digest(prompts: Sequence[Prompt]) -> str:
    """Return a short digest of a set of prompts and what they ask for."""
    text = "\n".join(f"{picture_name(p)} {sorted(p.asks.items())}" for p in prompts)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save_png(image: Tensor, path: Path) -> None:
    """Write one picture, (3, h, w) in [0, 1], under a temporary name first.

    Raises:
        PalimpsestError: the picture has NaN or an infinite number.
    """
    check_finite(f"{path}: the picture", image)
    array = (image.permute(1, 2, 0).float().numpy() * 255).round().astype("uint8")
    with whole(path) as part:
        Image.fromarray(array).save(part, format="PNG")


def draw(
    model: Any,
    wanted: Sequence[tuple[Path, Prompt]],
    task: Task,
    tell: Tell = lambda sentence: None,
) -> None:
    """Make the pictures of prompts that are not there, and write each into its file.

    The batches are those of all prompts, whichever are there: one that was broken off is drawn
    again whole, so that a killed and resumed run equals an unbroken one on every device. Of several
    processes each draws a part of the batches.
    """
    size, group = model.sampling.batch, processes.here()
    every = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    lacking = [sum(not path.exists() for path, _ in batch) for batch in every]
    batches = [batch for batch, n in zip(every, lacking, strict=True) if n]
    steps = [n for n in lacking if n]
    shared: AbstractContextManager[None] = nullcontext()
    if group.size > 1 and batches:
        from palimpsest.models.elsewhere import Model

        shared = group.helped(_help_draw, Model.of(model), batches)
    with shared:
        for i, _ in enumerate(_drawn(model, group.own(batches), tell)):
            task.advance(sum(steps[i * group.size : (i + 1) * group.size]))  # with the others'


def _help_draw(
    group: Alone, model: Model, batches: Sequence[Sequence[tuple[Path, Prompt]]]
) -> None:
    """Draw this process's part of the batches."""
    with model.here() as own:
        for _ in _drawn(own, group.own(batches)):
            pass


def _drawn(
    model: Any,
    batches: Sequence[Sequence[tuple[Path, Prompt]]],
    tell: Tell = lambda sentence: None,
) -> Iterator[None]:
    """Draw batches one after the other, and write the pictures that are not there."""
    for batch in batches:
        missing = {path for path, _ in batch if not path.exists()}
        images = model.generate([prompt for _, prompt in batch], Context(tell=tell))
        for (path, _), image in zip(batch, images, strict=True):
            if path in missing:
                save_png(image, path)
        yield


def adopt(run: Run, prompts: Sequence[Prompt]) -> None:
    """Take over what other runs of the same evaluation drew of some prompts, such as its shards.

    Args:
        run: begun; pictures that it has stay.
        prompts: whose pictures are wanted.
    """
    own, names = run.record(), [picture_name(p) for p in prompts]
    for path in sorted(run.folder.parent.glob(f"{run.name.rpartition('-')[0]}-*/run.json")):
        other = Run(path.parent)
        record = other.record()
        if (record.theme, record.model, record.patches) == (own.theme, own.model, own.patches):
            copy(other, run.folder, {name: name for name in names})


def copy(run: Run, folder: Path, names: Mapping[str, str]) -> None:
    """Copy pictures of a run, whole or not at all; what is there stays, what it lacks is left out.

    Args:
        run: where they lie.
        folder: where they go.
        names: name in the run → name in the folder.
    """
    for name, new in names.items():
        source, target = run.path(name), folder / new
        if source.is_file() and not target.exists():
            with whole(target) as part:
                shutil.copyfile(source, part)


def pictures(run: Run, prompts: Sequence[Prompt]) -> Tensor:
    """Return pictures of a run as they lie on disk, (n, 3, h, w) in [0, 1].

    Raises:
        PalimpsestError: one is missing, broken or of another size than the first; or there are
            none.
    """
    if not prompts:
        raise PalimpsestError(f"{run.folder}: holds no pictures; run its command again")
    files = [run.kept(picture_name(p)) for p in prompts]
    try:
        read = [read_picture(file) for file in files]
    except PalimpsestError as error:
        raise PalimpsestError(f"{error}; {AGAIN}") from error
    for file, image in zip(files, read, strict=True):
        if image.size != read[0].size:
            sizes = " and of ".join(f"{w} × {h}" for w, h in (image.size, read[0].size))
            raise PalimpsestError(f"{file}: pictures of {sizes} pixels in one run; {AGAIN}")
    return torch.from_numpy(np.stack(list(map(np.asarray, read)))).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Lots:
    """A run's pictures of some prompts, read from the disk a lot at a time, however often."""

    run: Run
    prompts: Sequence[Prompt]

    def __iter__(self) -> Iterator[tuple[Tensor, Sequence[Prompt]]]:
        """Yield pictures, (n, 3, h, w) in [0, 1], with their prompts."""
        for some in lots(self.prompts):
            yield pictures(self.run, some), some


def row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt's line in `images.jsonl`."""
    fields = asdict(prompt)
    return {"file": picture_name(prompt), "prompt": fields.pop("text"), **fields}


def asked(run: Run) -> list[Prompt]:
    """Return the prompts of a run's pictures.

    Raises:
        PalimpsestError: a row that is none.
    """
    return [
        Prompt(r.prompt, r.seed, r.index, r.guidance, r.case, r.asks) for r in run.values(Drawn)
    ]


def scores_file(run: Run, judge: Entry | None) -> str:
    """Return the file of what a judge said of a run's pictures.

    It is `scores.jsonl` of the run's own judge, the first that looked at the unedited model's;
    every other judge has a file of its own.
    """
    own = run.record().judge
    return Scored.name if judge in (own, None) or own is None else f"scores-{judge.key}.jsonl"


def labels(
    run: Run, prompts: Sequence[Prompt], judge: Entry | None = None
) -> dict[str, list[str | None]]:
    """Return what a judge said of the prompts' pictures, head by head; None is the run's own.

    Raises:
        PalimpsestError: a picture that it did not judge, or with other heads than the first.
    """
    file = scores_file(run, judge)
    scores = {row.file: row.labels for row in run.values(Scored, file)}
    said = [scores.get(picture_name(p), {}) for p in prompts]
    for prompt, line in zip(prompts, said, strict=True):
        if not line or line.keys() != said[0].keys():
            raise PalimpsestError(
                f"{run.path(file)}: says too little of {picture_name(prompt)}; judge "
                "the run again with `palimpsest judge`"
            )
    return {kind: [line[kind] for line in said] for kind in (said[0] if said else ())}
