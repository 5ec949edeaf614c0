"""Distances between the pictures of an edited model and those of others, set against set."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from palimpsest.core.lots import lots
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Number, Seen
from palimpsest.metrics.clusters import units


class Between:
    """What measures that compare whole sets share: which sets, and when they are too small."""

    force: bool
    """Compute a Fréchet distance of fewer pictures than a feature has numbers."""

    def look(self, pictures: Any) -> Any:
        """Return what is compared, a row for each of (n, 3, height, width) pictures in [0, 1]."""
        raise NotImplementedError

    def compared(self, behind: str, theirs: Any, ours: Any, of: Sequence[Hashable]) -> list[Number]:
        """Return the distances of two sets.

        Args:
            behind: what stands in their names behind the title.
            theirs: what `look` returned of the pictures beside.
            ours: the same of those that are measured.
            of: what a resampling takes as one, of each picture.
        """
        raise NotImplementedError

    def collect(self, seen: Seen) -> dict[str, Any]:
        """Return what is compared, of the pictures asked for the concept and of the others."""
        parts = _parts(seen) if not seen.answered else {}
        return {
            name: torch.cat([self.look(seen.pictures(lot)) for lot in lots(some)])
            for name, some in parts.items()
            if len(some) > 1
        }

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Distances from whoever is beside; none from itself."""
        pairs = [
            ("", "others", beside("unedited")),
            (" to gold", "others", beside("gold")),
            (" to gold", "concept", beside("gold")),
        ]
        of = {name: units([p.cluster for p in some]) for name, some in _parts(seen).items()}
        return [
            row
            for which, part, other in pairs
            if other and other is not found and part in found
            for row in self.compared(f"{which}, {part}", other[part], found[part], of[part])
        ]

    def too_few(self, n: int, width: int) -> str:
        """Return why a Fréchet distance of `n` pictures is not computed; nothing if it is."""
        if self.force or n >= width:
            return ""
        return (
            f"not computed: {n} pictures are fewer than the {width} numbers of a feature, so that "
            "it would be biased upward; draw more, or count it by palimpsest judge --force"
        )


def _parts(seen: Seen) -> dict[str, list[Prompt]]:
    return {"others": seen.rest, "concept": seen.own}
