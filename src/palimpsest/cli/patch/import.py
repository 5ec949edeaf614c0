"""`palimpsest patch import`."""  # noqa: N999

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console, machine, paths
from palimpsest.cli.judged import Judged
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError


@dataclass(frozen=True, kw_only=True)
class Import(Judged):
    """Make a patch of what others edited, or with --concept a run that judges it."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER")]
    """A LoRA (Diffusers, kohya, PEFT, LyCORIS), an SPM, a textual inversion (Diffusers, A1111), a
    state dict of the U-Net or the text encoder, a checkpoint, or a folder of one of these; with
    --concept a patch file, too. Or `owner/name` on the Hub, with a file behind it if need be."""
    out: Path | None = None
    """The patch file to write; with --concept a run is made instead, which holds the patch."""
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
    """Overwrite the file; with --concept, judge even what the base model hardly knows."""

    def __call__(self, call: Call) -> None:
        """Read, compare with the base, and write a patch or make a run."""
        if self.concept or self.concepts:
            if self.out is not None or self.rank is not None or self.half:
                raise PalimpsestError(
                    "--out, --rank and --half write a patch file, and --concept makes a run, whose "
                    "folder holds the patch whole; leave either out"
                )
            run = self.imported(call, self.model, self.source, self.word, self.force)
            names = ", ".join(run.record().names)
            console.numbers(f"{names}, after {self.source.name}", [("edited", run)])
            return console.made(run.folder)
        if self.out is None:
            raise PalimpsestError(
                "needs --out FILE for a patch, or --concept NAME for a run that judges it"
            )
        paths.lock_file(call, self.out, self.force)
        source = machine.published(self.source)
        model = self.load(self.model)
        from palimpsest.exchange.import_ import read
        from palimpsest.patch.algebra import truncated

        patch = read(source, model, self.word)
        for note in patch.about.get("notes", ()):
            console.warn(note)
        if self.rank is not None:
            patch, residual = truncated(patch, self.rank, smaller=True)
            console.warn(f"at rank {self.rank} the patch misses {residual:.1%} of the edit's norm")
        paths.write_patch(patch, self.out, self.half)
        console.made(
            self.out, f"{self.out}: {len(patch.names)} parameters, {patch.nbytes / 2**20:.2f} MB"
        )
