"""How far an edited model's pictures are from those of the unedited and of the gold model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.judge import spec_text
from palimpsest.methods import Number, Seen
from palimpsest.metrics import distances

WORLD = "world judge"

MEANINGS = {
    "": "distance of these pictures from the unedited model's, on features of the judge. Lower is "
    "closer. It must not be compared with an Inception FID.",
    " to gold": "distance of these pictures from those of the model that never knew the concept, "
    "on features of the judge: an eraser is as good as it is close to gold. Lower is closer.",
}
"""Behind the distance's title → what it says."""


@dataclass(frozen=True)
class Frechet:
    """The Fréchet distance of pictures of the same prompts, on a judge's own features.

    Heusel et al. 2017, eq. 6. It is no Inception FID, and it comes without an interval.
    """

    judge: Any
    """A judge that has `features`, too."""

    @property
    def title(self) -> str:
        """What the distance is called: the world's has a name of its own."""
        name = self.judge.spec.name
        return "world-FID" if name == WORLD else f"FID on features of {name}"

    @property
    def spec(self) -> str:
        """The judge's own."""
        return spec_text(self.judge.spec)

    @property
    def meanings(self) -> Mapping[str, str]:
        """What the distances say."""
        return {self.title + which: meaning for which, meaning in MEANINGS.items()}

    def collect(self, seen: Seen) -> dict[str, Any]:
        """Return features, (n, d), of the pictures asked for the concept, and of the others."""
        parts = {"others": seen.rest, "concept": seen.own} if not seen.answered else {}
        return {
            name: self.judge.features(seen.pictures(some)).cpu()
            for name, some in parts.items()
            if len(some) > 1
        }

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Distances from whoever is beside; none from itself."""
        pairs = [
            (self.title, "others", beside("unedited")),
            (f"{self.title} to gold", "others", beside("gold")),
            (f"{self.title} to gold", "concept", beside("gold")),
        ]
        return [
            Number(f"{title}, {part}", distances.frechet(other[part], found[part]), n=len(own))
            for title, part, other in pairs
            if other and other is not found and (own := found.get(part)) is not None
        ]
