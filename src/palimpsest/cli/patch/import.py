"""`palimpsest patch import`."""  # noqa: N999

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console, machine, paths
from palimpsest.cli.tree import Call


@dataclass(frozen=True, kw_only=True)
class Import(machine.Machine):
    """Make a patch of what others edited: a LoRA, an embedding, edited weights, a model."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER")]
    """A LoRA (Diffusers, kohya, PEFT, LyCORIS), an SPM, a textual inversion (Diffusers, A1111), a
    state dict of the U-Net or the text encoder, a checkpoint, or a folder of one of these."""
    out: Path
    """The patch file to write."""
    model: str = "world"
    """The base model that it edits."""
    word: str | None = None
    """For a textual inversion: the word whose place it takes, of as many tokens as it has vectors;
    for an SPM: the prompt that opens it. The name or the prompts it carries when left out."""
    rank: int | None = None
    """Cut the edit to this rank, which keeps a patch of whole weights small; what is lost is
    told."""
    half: bool = False
    """Store shifts in half precision, which makes the file half as large and less exact."""
    force: bool = False
    """Overwrite the file."""

    def __call__(self, call: Call) -> None:
        """Read, compare with the base, and write."""
        paths.lock_file(call, self.out, self.force)
        model = self.load(self.model)
        from palimpsest.exchange.import_ import read
        from palimpsest.patch.algebra import truncated

        patch = read(self.source, model, self.word)
        for note in patch.about.get("notes", ()):
            console.warn(note)
        if self.rank is not None:
            patch, residual = truncated(patch, self.rank, smaller=True)
            console.warn(f"at rank {self.rank} the patch misses {residual:.1%} of the edit's norm")
        paths.write_patch(patch, self.out, self.half)
        console.say(f"{self.out}: {len(patch.names)} parameters, {patch.nbytes / 2**20:.2f} MB")
