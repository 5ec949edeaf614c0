"""How well pictures fit their prompts, by a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from palimpsest.core.lots import lots
from palimpsest.core.prompts import Prompt
from palimpsest.judge import spec_text
from palimpsest.methods import Number, Seen, TextJudge
from palimpsest.metrics import rates
from palimpsest.metrics.rates import Rate

RANGE = -1.0, 1.0
"""Of a cosine."""

MEANINGS = {
    "CLIP cosine": "how well pictures fit their prompts: cosine of CLIP's picture and text "
    "features. Higher fits better; over the concept low is thorough."
}

THEME_MEANINGS = {name: text.partition(" Higher")[0] for name, text in MEANINGS.items()}
"""Over what is erased and what is not, neither way is good."""


@dataclass(frozen=True)
class Cosine:
    """The mean cosine of pictures and prompts, for the concept and for all others."""

    clip: TextJudge

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """The CLIP's own."""
        return spec_text(self.clip.spec)

    def collect(self, seen: Seen) -> dict[str, list[float]]:
        """Return the cosine of each picture; NaN of one that CLIP cannot read."""
        return {name: self._cosines(seen, some) for name, some in self.parts(seen).items() if some}

    def parts(self, seen: Seen) -> dict[str, list[Prompt]]:
        """Return the prompts that each mean is over."""
        return {"concept": seen.own, "others": seen.rest} if not seen.answered else {}

    def _cosines(self, seen: Seen, some: Any) -> list[float]:
        """Return them a lot after the other, not to hold every picture at once."""
        each = (self.clip.cosine(seen.pictures(lot), [p.text for p in lot]) for lot in lots(some))
        return [cosine for part in each for cosine in part.tolist()]

    def means(self, seen: Seen, found: Mapping[str, Sequence[float]]) -> dict[str, Rate]:
        """Return the mean of each part, within the range of a cosine."""
        return {
            name: rates.mean(found[name], [p.cluster for p in some], RANGE)
            for name, some in self.parts(seen).items()
            if some
        }

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Means with Student's intervals."""
        each = self.means(seen, found)
        return [Number.of(f"CLIP cosine, {name}", mean, "") for name, mean in each.items()]


@dataclass(frozen=True)
class ThemeCosine(Cosine):
    """The mean cosine over all prompts, and over those of each concept."""

    meanings = THEME_MEANINGS

    def parts(self, seen: Seen) -> dict[str, list[Prompt]]:
        """Return the prompts of each concept."""
        return {concept.name: own for concept, own in seen.by_concept}

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the mean over all pictures, then that of each concept."""
        clusters = [p.cluster for name in found for p in self.parts(seen)[name]]
        every = rates.mean([*chain(*found.values())], clusters, RANGE)
        each = self.means(seen, found)
        rows = [Number.of("CLIP cosine", mean, "", name) for name, mean in each.items()]
        return [Number.of("CLIP cosine", every, ""), *rows]
