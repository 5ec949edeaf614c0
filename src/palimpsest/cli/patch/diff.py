"""`palimpsest patch diff`."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from palimpsest.cli import console, open_run, paths
from palimpsest.cli.telling import Shown
from palimpsest.cli.tree import Call

if TYPE_CHECKING:
    from palimpsest.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare two patches, or write down what one has beyond the other."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """A run, or a patch file."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """Another."""
    out: Path | None = None
    """A patch file to write: the first patch less the second."""
    force: bool = False
    """Overwrite the file."""

    def __call__(self, call: Call) -> None:
        """Print a line per group of layers, and write the difference if asked to."""
        if self.out is not None:
            paths.lock_file(call, self.out, self.force)
        first, second = open_run.patch_from(self.first), open_run.patch_from(self.second)
        if first.digest() == second.digest():
            console.say("the two patches hold the very same tensors")
        rows = compared(first, second)
        title = f"{self.first.name} and {self.second.name}"
        console.table(
            title, ["", "parameters (both)", "norms", "cosine", "norm of the difference"], rows
        )
        if self.out is not None:
            paths.write_patch(first - second, self.out)
            console.made(self.out)


def compared(first: Patch, second: Patch) -> list[list[Any]]:
    """Return a row per group of layers, and one of everything."""
    from palimpsest.cli.patch.show import by_group
    from palimpsest.patch.algebra import energies, inner

    for patch in (first, second):
        patch.refuse_hook("compared")
    ours, theirs = energies(first), energies(second)
    both = {n: inner(first.edits[n], second.edits[n]) for n in ours if n in theirs}
    rows = []
    for label, names in by_group({**ours, **theirs}).items():
        a, b, ab = (sum(of.get(name, 0.0) for name in names) for of in (ours, theirs, both))
        one, other, shared = (sum(name in of for name in names) for of in (ours, theirs, both))
        counts = f"{one} / {other} ({shared})"
        rest = sqrt(max(a + b - 2 * ab, 0.0))
        cosine = ab / sqrt(a * b) if a and b else nan
        norms = f"{console.figure(sqrt(a))} / {console.figure(sqrt(b))}"
        told = Shown([one, other, shared], counts), Shown([sqrt(a), sqrt(b)], norms)
        rows.append([label, *told, Shown(cosine, console.figure(cosine, 3)), rest])
    return rows
