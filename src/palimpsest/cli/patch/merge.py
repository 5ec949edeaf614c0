"""`palimpsest patch merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from palimpsest.cli import console, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError

if TYPE_CHECKING:
    from palimpsest.patch.algebra import Overlap


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Add patches up into one, and say where they overlap."""

    sources: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE…")
    ]
    """Two or more runs or patch files. A recovery's patch counts with that of its subject."""
    out: Path
    """The patch file to write."""
    scale: tuple[float, ...] = ()
    """A factor for each, in their order; negative ones take a patch out. All 1 when left out."""
    half: bool = False
    """Store shifts in half precision, which makes the file half as large and less exact."""
    force: bool = False
    """Overwrite the file."""

    def __call__(self, call: Call) -> None:
        """Scale, add, warn and write."""
        if len(self.sources) < 2:
            raise PalimpsestError("name two patches or more to merge")
        if self.scale and len(self.scale) != len(self.sources):
            raise PalimpsestError(
                f"--scale has {len(self.scale)} factors for {len(self.sources)} patches"
            )
        paths.lock_file(call, self.out, self.force)
        from palimpsest.patch.algebra import compose

        patches = [open_run.patch_from(path) for path in self.sources]
        if self.scale:
            patches = [p.scaled(k) for p, k in zip(patches, self.scale, strict=True)]
        joint, found = compose(patches)
        for pair in dict.fromkeys(o.pair for o in found):
            first, second = (self._called(self.sources[i]) for i in pair)
            console.warn(sentence(first, second, [o for o in found if o.pair == pair]))
        paths.write_patch(joint, self.out, self.half)
        console.made(
            self.out, f"{self.out}: {len(joint.edits)} parameters, {joint.nbytes / 2**20:.2f} MB"
        )

    def _called(self, source: Path) -> str:
        """Return a source's name, with its folders where another has the same name."""
        alike = [other for other in self.sources if other.name == source.name]
        return source.name if len(alike) == 1 else str(source)


def sentence(first: str, second: str, found: list[Overlap]) -> str:
    """Return what a person should know of two patches that overlap."""
    from palimpsest.patch.algebra import overall

    cosine, ours, theirs = overall(found)
    most = max(found, key=lambda o: abs(o.cosine) if o.cosine == o.cosine else 2)
    told = "replaced whole by one" if most.cosine != most.cosine else f"cosine {most.cosine:.2f}"
    return (
        f"{first} and {second} overlap in {len(found)} parameters, which hold {ours:.0%} and "
        f"{theirs:.0%} of their energy (cosine {cosine:.2f}); most in {most.name} ({told})"
    )
