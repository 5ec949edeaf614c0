"""`palimpsest generate PROMPT…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.tables import Table, names_of
from palimpsest.cli.tree import Call
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt, write_csv
from palimpsest.methods import Context
from palimpsest.world import suite

if TYPE_CHECKING:
    from PIL.Image import Image

    from palimpsest.models.diffusion import Diffusion
    from palimpsest.patch import Patch

MOST = 400
"""Pictures on the sheet; the folder holds them all."""


@dataclass(frozen=True, kw_only=True)
class Generate(Table, machine.Drawing):
    """Make pictures, with or without patches; broken off, the same command goes on."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT…")] = ()
    """What to make; quote a prompt of several words."""
    concept: str | None = None
    """A concept instead: every sentence that asks for it is a prompt."""
    kind: Kind | None = None
    """With --concept, what sort of thing it is. The world knows its own; elsewhere `object` when
    left out."""
    csv: Path | None = None
    """A table of prompts instead: CSV with a column `prompt`; optionally seeds, guidances and what
    is asked for, by the names that benchmarks give them (docs/runs.md)."""
    model: str = "world"
    """`world` (built in), a Diffusers folder, a .safetensors checkpoint, or a Hub id."""
    patch: tuple[Path, ...] = ()
    """Patch files, or runs whose patches are meant, all laid over the model at once."""
    seed: int = 0
    """Fixes the noise that pictures start from; a CSV has its own (0 where it has none)."""
    n: int = 1
    """Pictures per prompt."""
    shard: str | None = None
    """A part of the prompts, such as 1/4, for several machines: pictures are drawn and named as in
    the whole, so that the folders of all parts, each with an --out of its own, fit together."""
    for_training: bool = False
    """Write a folder to train on: nothing but the pictures, each from noise of its own, and
    metadata.jsonl with their captions (Hugging Face's imagefolder). Run again, it goes on where it
    stopped."""
    out: Path = Path("pictures")
    """The folder to write: the pictures, grid.png and prompts.csv."""
    force: bool = False
    """Write into a folder that is not empty."""

    def __call__(self, call: Call) -> None:
        """Make the pictures, each written as it is drawn; the folder appears when all are there."""
        if bool(self.prompts) + (self.csv is not None) + (self.concept is not None) != 1:
            raise PalimpsestError("give either prompts, or --csv FILE, or --concept NAME")
        if self.n < 1:
            raise PalimpsestError(f"--n is {self.n}; it must be 1 or more")
        if self.shard and self.for_training:
            raise PalimpsestError("--shard: a folder to train on is drawn whole; leave one out")
        known = names_of((), True) if self.model == "world" else None
        asked = self.table(self.csv, "--csv", known) or self._asked()
        from palimpsest.protocols.protocol import shard

        numbered = [*enumerate(asked.values())]
        some = shard(numbered, self.shard) if self.shard else numbered
        shared = not self.for_training
        paths.lock_folder(call, self.out, self.force and shared, forcible=shared)
        model = self.load(self.model)
        joint = open_run.patch_from(*self.patch) if self.patch else None
        machine.warn_overlong(model, asked, self.csv)
        prompts = [prompt for _, prompt in some]
        if self.for_training:
            return self._for_training(model, prompts, joint)
        rows = [(at * self.n + i, replace(p, index=i)) for at, p in some for i in range(self.n)]
        from palimpsest.runs.imagefolder import gathered
        from palimpsest.runs.images import words

        names = {f"{number:04d}-{words(p)}.png": p for number, p in rows}
        added, own = ("grid.png", "prompts.csv"), (joint, self._context)
        with gathered(model, names, self.out, added, *own) as folder:
            shown = [folder / name for name in names][:MOST]
            sheet(shown, columns=self.n if self.n > 1 else 0).save(folder / "grid.png")
            with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
                write_csv(prompts, file)
        many = "all of them" if len(rows) <= MOST else f"the first {MOST}"
        text = f"{len(rows)} pictures in {self.out}; {many} at once: {self.out / 'grid.png'}"
        console.made(self.out, text)

    def _for_training(self, model: Diffusion, asked: Sequence[Prompt], patch: Patch | None) -> None:
        from palimpsest.runs.imagefolder import write_imagefolder

        each = [prompt for prompt in asked for _ in range(self.n)]
        rows = [replace(prompt, index=i) for i, prompt in enumerate(each)]  # no noise twice
        write_imagefolder(model, rows, self.out, patch=patch, context=self._context)
        console.made(self.out, f"{len(rows)} pictures with their captions in {self.out}")

    @property
    def _context(self) -> Context:
        return Context(progress=console.progress(), tell=console.warn)

    def _asked(self) -> dict[int, Prompt]:
        """Return number → prompt, if no table says what to make."""
        texts = self.prompts
        if self.concept is not None and self.model == "world" and self.kind is None:
            texts = suite.concept(self.concept).sentences
        elif self.concept is not None:
            texts = Concept(self.concept, self.kind or "object").sentences
        return {number: Prompt(text, self.seed) for number, text in enumerate(texts, 1)}


def sheet(files: Sequence[Path], columns: int = 0, gap: int = 2) -> Image:
    """Return pictures of one size on one sheet: row by row, near a square by default."""
    from PIL import Image

    from palimpsest.data.images import read_picture

    width, height = read_picture(files[0]).size
    columns = columns or max(1, round((len(files) * height / width) ** 0.5))
    lines = -(-len(files) // columns)
    size = (columns * (width + gap) - gap, lines * (height + gap) - gap)
    page = Image.new("RGB", size, "white")
    for i, file in enumerate(files):
        line, column = divmod(i, columns)
        page.paste(read_picture(file), (column * (width + gap), line * (height + gap)))
    return page
