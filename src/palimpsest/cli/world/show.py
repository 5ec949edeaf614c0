"""`palimpsest world show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli import console
from palimpsest.cli.tree import Call
from palimpsest.core.atomic import whole


@dataclass(frozen=True)
class Show:
    """Draw every object in every style, and all else, on one sheet."""

    out: Path = Path("world.png")
    """The PNG to write."""
    seed: int = 0
    """Another seed draws other pictures of the same things."""
    scale: int = 2
    """How many times larger than 64×64 each picture is shown."""

    def __call__(self, call: Call) -> None:
        """Draw the sheet and say where it lies."""
        from palimpsest.world.render import contact_sheet

        page = contact_sheet(self.seed, self.scale)
        with whole(self.out) as part:
            page.save(part, format="PNG")
        console.made(self.out)
