"""How well pictures fit their prompts, as the field prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import Counting
from palimpsest.judge.cosine import Cosine
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates

MEANINGS = {
    "CLIP score (×100)": "how well pictures fit their prompts, 0 to 100: 100 times the cosine "
    "of CLIP's picture and text features, and 0 of one below 0. Higher fits better; over "
    "the concept low is thorough."
}


class ClipScore(Cosine):
    """The CLIP score, 100 times the cosine of pictures and prompts, and 0 of one below 0.

    Hessel et al. 2021, eq. 1, with w = 100 in place of their 2.5, as torchmetrics and most papers
    have it.

    Traps: as of the cosine; and of two CLIPs, or two sizes of picture, it is not comparable.
    """

    meanings = MEANINGS

    @classmethod
    def open(cls, counting: Counting) -> ClipScore:
        """Open it with the run's CLIP.

        Raises:
            PalimpsestError: the run has none.
        """
        if counting.clip is None:
            raise PalimpsestError("the measure 'clip_score' asks a CLIP, and the run has none")
        return cls(counting.clip)

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Means with Student's intervals, within 0 and 100."""
        prompts = {"concept": seen.own, "others": seen.rest}
        rows = []
        for part, cosines in found.items():
            scores = [100 * max(c, 0.0) if c == c else c for c in cosines]  # eq. 1
            mean = rates.mean(scores, [p.cluster for p in prompts[part]], (0, 100))
            rows.append(Number.of(f"CLIP score (×100), {part}", mean, ""))
        return rows
