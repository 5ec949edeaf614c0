"""How far an edited model's pictures are from those of the unedited and of the gold model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.judge import spec_text
from palimpsest.judge.between import Between
from palimpsest.methods import Number
from palimpsest.metrics import distances

WORLD = "world judge"

MEANINGS = {
    "": "distance of these pictures from the unedited model's, on features of the judge. Lower is "
    "closer. It must not be compared with one on Inception.",
    " to gold": "distance of these pictures from those of the model that never knew the concept, "
    "on features of the judge: an eraser is as good as it is close to gold. Lower is closer.",
}
"""Behind the distance's title → what it says."""


@dataclass(frozen=True)
class Frechet(Between):
    """The Fréchet distance of pictures of the same prompts, on a judge's own features.

    Heusel et al. 2017, eq. 6, with an interval by the jackknife. It is no Inception FID.

    Traps: with fewer pictures than a feature has numbers the covariances are singular and the
    distance is biased upward. It is then not computed unless forced; the world's, which serves to
    compare edits over the same prompts, has a name of its own and always is.
    """

    judge: Any
    """A judge that has `features`, too."""
    force: bool = False

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

    def look(self, pictures: Any) -> Any:
        """Return features, (n, d), of pictures."""
        return self.judge.features(pictures).cpu()

    def compared(self, behind: str, theirs: Any, ours: Any, of: Sequence[Hashable]) -> list[Number]:
        """Return the distance of two sets of features, or in its meaning why there is none."""
        n, width = ours.shape
        if self.title != "world-FID" and (why := self.too_few(n, width)):
            return [Number(self.title + behind, math.nan, n=n, meaning=why)]
        rate = distances.jackknifed(distances.frechet, theirs, ours, of, 0)
        return [Number.of(self.title + behind, rate, "")]
