"""Folders of captioned pictures to train on, in Hugging Face's imagefolder format.

```
parachutes/
  00000-a-picture-of-a-parachute.png  …
  metadata.jsonl    one line a picture: file_name, text, and what it was made with
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from palimpsest.core.atomic import become, reason, remove, sweep, temporary, write_text
from palimpsest.core.errors import PalimpsestError, WriteError
from palimpsest.core.prompts import Prompt
from palimpsest.data.sources import METADATA
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.runs.images import draw, words

PLAN = "plan.json"
"""In an unfinished folder: the digest of what it will hold."""


def write_imagefolder(
    model: Diffusion,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    patch: Patch | None = None,
    context: Context,
) -> None:
    """Make one picture per prompt, and write them with their captions.

    Pictures gather in a hidden folder beside it, named after what they are, which becomes `folder`
    when all are there; broken off, the same call goes on where it stopped.

    Args:
        model: what draws.
        prompts: what is drawn; the captions are their texts.
        folder: must not exist, or be empty.
        patch: lies over the model while it draws.
        context: shows the progress.

    Raises:
        PalimpsestError: `folder` holds something, something lies in the unfinished one's place, or
            the disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise PalimpsestError(
            f"{folder}: not empty, and a folder to train on may hold nothing else; choose another"
        )
    about = _about(model, patch)
    rows = [_row(model, p, i) | about for i, p in enumerate(prompts)]
    wanted = {str(row["file_name"]): p for row, p in zip(rows, prompts, strict=True)}
    with gathered(model, wanted, folder, (METADATA,), patch, context) as part:
        write_text(part / METADATA, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def gathered(
    model: Diffusion,
    wanted: Mapping[str, Prompt],
    folder: Path,
    more: Sequence[str],
    patch: Patch | None,
    context: Context,
) -> Iterator[Path]:
    """Draw pictures one batch after the other, yield their folder, and give it its name at the end.

    It is a hidden folder beside `folder` until then; broken off, the same call goes on with it.

    Args:
        model: what draws.
        wanted: file name → what is drawn in it.
        folder: what else lies in it comes along.
        more: names of the files that the caller adds.
        patch: lies over the model while it draws.
        context: shows the progress.

    Raises:
        PalimpsestError: something lies in the unfinished one's place, or the disk is full.
    """
    rows = [_row(model, p, i) | {"file_name": name} for i, (name, p) in enumerate(wanted.items())]
    plan = [row | _about(model, patch) for row in rows]
    part = _unfinished(folder, plan, {PLAN, *wanted, *more})
    paths = [(part / name, p) for name, p in wanted.items()]
    done = sum(path.exists() for path, _ in paths)
    try:
        with model.patched(patch), context.progress.task("pictures", len(rows), done) as task:
            draw(model, paths, task, context.tell)
    except PalimpsestError:
        if not any(path.exists() for path, _ in paths):
            remove(part)
        raise
    yield part
    (part / PLAN).unlink()
    old = temporary(folder)  # what an older folder is called then: never as the plan's
    os.replace(part, old)
    become(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _row(model: Diffusion, prompt: Prompt, i: int) -> dict[str, object]:
    """Return a picture's line in `metadata.jsonl`, but for what is the same in every line."""
    return {
        "file_name": f"{i:05d}-{words(prompt)}.png",
        "text": prompt.text,
        "seed": prompt.seed,
        "index": prompt.index,
        "guidance": model.sampling.guidance if prompt.guidance is None else prompt.guidance,
    }


def _about(model: Diffusion, patch: Patch | None) -> dict[str, object]:
    """Return who drew the pictures."""
    return {
        "steps": model.sampling.steps,
        "sampling": str(model.sampling),
        "model": model.name,
        "identity": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "patch": patch.digest()[:16] if patch else "",
    }


def _unfinished(folder: Path, rows: list[dict[str, object]], own: set[str]) -> Path:
    """Make the folder where pictures gather, or go on in one that is meant for the same ones.

    Args:
        folder: what it will be called.
        rows: what it is meant for.
        own: the names of all files that may lie in it.

    Raises:
        PalimpsestError: in its place lies what no call for these pictures has made.
    """
    plan = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    part = folder.with_name(f".{folder.name[:60]}-{plan[:16]}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(part):
            part.mkdir()
        ours = part.is_dir() and not part.is_symlink()
        if ours:
            sweep(part)
        if not ours or not {path.name for path in part.iterdir()} <= own:
            raise PalimpsestError(f"{part}: not ours, and lies in the way; move it away")
        write_text(part / PLAN, json.dumps(plan))
    except OSError as error:
        raise WriteError(f"{part}: cannot be made a folder ({reason(error)})") from error
    return part
