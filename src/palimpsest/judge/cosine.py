"""How well pictures fit their prompts, by a CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.judge import spec_text
from palimpsest.methods import Number, Seen, TextJudge
from palimpsest.metrics import rates

MEANINGS = {
    "CLIP cosine": "how well pictures fit their prompts: cosine of CLIP's picture and text "
    "features. Higher fits better."
}


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
        parts = {"concept": seen.own, "others": seen.rest} if not seen.answered else {}
        return {name: self._cosines(seen, some) for name, some in parts.items() if some}

    def _cosines(self, seen: Seen, some: Any) -> list[float]:
        return self.clip.cosine(seen.pictures(some), [p.text for p in some]).tolist()

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Means with Student's intervals."""
        return [Number.of(f"CLIP cosine, {k}", rates.mean(v), "") for k, v in found.items()]


@dataclass(frozen=True)
class ThemeCosine(Cosine):
    """The mean cosine over all prompts, and over those of each concept."""

    def collect(self, seen: Seen) -> dict[str, list[float]]:
        """Concept → the cosine of each picture; one by one, not to hold every picture at once."""
        return {concept.name: self._cosines(seen, own) for concept, own in seen.by_concept}

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the mean over all pictures, then that of each concept."""
        every = rates.mean([cosine for cosines in found.values() for cosine in cosines])
        rows = [Number.of("CLIP cosine", rates.mean(c), "", name) for name, c in found.items()]
        return [Number.of("CLIP cosine", every, ""), *rows]
