"""`palimpsest data cut`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console, paths
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Cut the pictures whose caption holds a name out of tars or folders, into a tar."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Webdataset tars (one, a folder of them, or a pattern in quotes), a folder of captioned
    pictures, a tree `{style}/{object}/{picture}`, or a .csv with the columns `image` and `text`."""
    name: tuple[str, ...]
    """Names to look for in the captions, as whole words in any case; several may be given."""
    out: Path = Path("forget.tar")
    """The tar to write: a picture and a `.txt` each."""
    rest: Path | None = None
    """A second tar for everything else, to retain."""
    force: bool = False
    """Overwrite tars that exist."""

    def __call__(self, call: Call) -> None:
        """Cut, and say how many were taken, left and skipped."""
        if self.rest is not None and self.rest.resolve() == self.out.resolve():
            raise PalimpsestError(f"{self.out}: named twice; --out and --rest must differ")
        if self.rest is not None:  # one may be there of a cut that was broken off
            paths.check_file(self.rest, force=True)
        from palimpsest.data.read import cut

        paths.lock_file(call, self.out, self.force, "tar")
        done = cut(self.source, self.name, self.out, self.rest, over=self.force)
        text = f"{self.out}: took {done.taken} of {done.taken + done.left} pictures"
        console.made(self.out, text)
        if self.rest is not None:
            console.made(self.rest, f"{self.rest}: {done.left} others")
        if done.skipped:
            console.warn(f"{len(done.skipped)} skipped")
            for reason in done.skipped[:20]:
                console.warn(reason)
