"""`palimpsest patch export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.core.atomic import whole_folder
from palimpsest.core.errors import PalimpsestError
from palimpsest.runs.folder import Run

Format = Literal[
    "diffusers",
    "checkpoint",
    "unet",
    "text-encoder",
    "text-encoder-2",
    "lora",
    "kohya",
    "embeddings",
]


@dataclass(frozen=True, kw_only=True)
class Export(machine.Machine):
    """Write out a patch for Diffusers, A1111 or ComfyUI."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """A run, or a patch file. A recovery's patch is laid over that of the run it attacked."""
    out: Path
    """The folder to write."""
    model: str | None = None
    """The base model; the run's own when left out, else `world`."""
    format: Format = "diffusers"
    """`diffusers`: the whole pipeline; `checkpoint`: the whole model as one file for A1111 and
    ComfyUI; `unet`, `text-encoder`, `text-encoder-2`: one state dict; `lora`: a LoRA for Diffusers;
    `kohya`: one for A1111 and ComfyUI; `embeddings`: edited token embeddings as textual
    inversions."""
    rank: int | None = None
    """Of a LoRA: cut the edit to this rank, as nearly as that allows; what is lost is told. When
    left out, only an edit that is low-rank already is written."""
    alpha: float | None = None
    """Of a LoRA: its α, by which readers scale it (α/rank); the rank when left out."""
    word: tuple[str, ...] = ()
    """Of embeddings: the words to write, one file each; every edited token when left out."""
    force: bool = False
    """Write into a folder that is not empty."""

    def __call__(self, call: Call) -> None:
        """Lay the patch over the model and save what comes out."""
        from palimpsest.exchange.export import FORMATS

        writer, takes = FORMATS[self.format]
        for name in ("rank", "alpha", "word"):
            if getattr(self, name) and name not in takes:
                raise PalimpsestError(f"--{name} has no meaning for the format {self.format!r}")
        paths.lock_folder(call, self.out, self.force)
        joint = open_run.patch_from(self.source)
        joint.refuse_hook("exported")
        name, files = self.model or "world", {}
        if self.model is None and self.source.is_dir():
            own = Run.open(self.source).record().model
            name, files = own.name, own.files
        model = self.load(name, files=files)
        if self.dtype is not None:  # asked for, so the base's own is not kept
            model.stored = {}
        with whole_folder(self.out) as folder:
            notes = writer(model, joint, folder, **{key: getattr(self, key) for key in takes})
        for note in notes:
            console.warn(note)
        console.made(self.out)
