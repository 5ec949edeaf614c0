"""`palimpsest generate PROMPT…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.core.atomic import whole_folder
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt, write_csv
from palimpsest.methods import Context
from palimpsest.world import suite

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from palimpsest.models.diffusion import Diffusion
    from palimpsest.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Generate(machine.Drawing):
    """Make pictures, with or without patches."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT…")] = ()
    """What to make; quote a prompt of several words."""
    concept: str | None = None
    """A concept instead: every sentence that asks for it is a prompt."""
    kind: Kind | None = None
    """With --concept, what sort of thing it is. The world knows its own; elsewhere `object` when
    left out."""
    csv: Path | None = None
    """A CSV of prompts instead (column `prompt`; optionally `evaluation_seed`,
    `evaluation_guidance`, `case_number`)."""
    model: str = "world"
    """`world` (built in), a Diffusers folder, a .safetensors checkpoint, or a Hub id."""
    patch: tuple[Path, ...] = ()
    """Patch files, or runs whose patches are meant, all laid over the model at once."""
    seed: int = 0
    """Fixes the noise that pictures start from; a CSV has its own (0 where it has none)."""
    n: int = 1
    """Pictures per prompt."""
    for_training: bool = False
    """Write a folder to train on: nothing but the pictures, each from noise of its own, and
    metadata.jsonl with their captions (Hugging Face's imagefolder). Run again, it goes on where it
    stopped."""
    out: Path = Path("pictures")
    """The folder to write: the pictures, grid.png and prompts.csv."""
    force: bool = False
    """Write into a folder that is not empty."""

    def __call__(self, call: Call) -> None:
        """Make the pictures and write them all, or none."""
        if bool(self.prompts) + (self.csv is not None) + (self.concept is not None) != 1:
            raise PalimpsestError("give either prompts, or --csv FILE, or --concept NAME")
        if self.n < 1:
            raise PalimpsestError(f"--n is {self.n}; it must be 1 or more")
        texts = self._texts()
        shared = not self.for_training
        paths.lock_folder(call, self.out, self.force and shared, forcible=shared)
        model = self.load(self.model)
        joint = open_run.patch_from(*self.patch) if self.patch else None
        asked = self._asked(model, texts)
        if self.for_training:
            return self._for_training(model, asked, joint)
        rows = [replace(p, index=i) for p in asked for i in range(self.n)]
        with model.patched(joint):
            images = model.generate(rows, self._context)
        with whole_folder(self.out) as folder:
            write(folder, asked, rows, images, self.n)
        console.say(
            f"{len(rows)} pictures in {self.out}; all of them at once: {self.out / 'grid.png'}"
        )

    def _for_training(self, model: Diffusion, asked: Sequence[Prompt], patch: Patch | None) -> None:
        from palimpsest.runs.imagefolder import write_imagefolder

        each = [prompt for prompt in asked for _ in range(self.n)]
        rows = [replace(prompt, index=i) for i, prompt in enumerate(each)]  # no noise twice
        write_imagefolder(model, rows, self.out, patch=patch, context=self._context)
        console.say(f"{len(rows)} pictures with their captions in {self.out}")

    @property
    def _context(self) -> Context:
        return Context(progress=console.progress(), tell=console.warn)

    def _texts(self) -> Sequence[str]:
        """Return what to make, if no CSV says it."""
        if self.concept is None:
            return self.prompts
        if self.model == "world" and self.kind is None:
            return suite.concept(self.concept).sentences
        return Concept(self.concept, self.kind or "object").sentences

    def _asked(self, model: Diffusion, texts: Sequence[str]) -> list[Prompt]:
        if self.csv is None:
            asked = [Prompt(text, self.seed) for text in texts]
            machine.warn_overlong(model, asked, "prompt", first=1)
            return asked
        return machine.prompts_from(self.csv, model)


def write(
    folder: Path, asked: Sequence[Prompt], rows: Sequence[Prompt], images: Tensor, n: int
) -> None:
    """Write pictures, contact sheet and prompts into a folder."""
    from palimpsest.runs.images import save_png, words

    for number, (prompt, image) in enumerate(zip(rows, images, strict=True)):
        save_png(image, folder / f"{number:04d}-{words(prompt)}.png")
    sheet(images, columns=n if n > 1 else 0).save(folder / "grid.png")
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        write_csv(asked, file)


def sheet(images: Tensor, columns: int = 0, gap: int = 2) -> Image:
    """Return all pictures, (k, 3, h, w) in [0, 1], on one: row by row, near a square by default."""
    from PIL import Image

    count, _, height, width = images.shape
    columns = columns or max(1, round((count * height / width) ** 0.5))
    lines = -(-count // columns)
    size = (columns * (width + gap) - gap, lines * (height + gap) - gap)
    page = Image.new("RGB", size, "white")
    for i, image in enumerate((images * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        line, column = divmod(i, columns)
        page.paste(Image.fromarray(image), (column * (width + gap), line * (height + gap)))
    return page
