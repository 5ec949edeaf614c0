"""How far an edited model's pictures are from others, by a kernel on a judge's features."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import Counting
from palimpsest.judge.frechet import Frechet
from palimpsest.methods import Number
from palimpsest.metrics import distances


class Kid(Frechet):
    """The kernel distance of pictures of the same prompts, on a judge's own features.

    Bińkowski et al. 2018: the unbiased squared maximum mean discrepancy by a polynomial kernel of
    degree 3, of all pictures at once, with an interval by the jackknife. It is no Inception KID.

    Traps: it is unbiased at any number of pictures, and so may come out below 0.
    """

    @property
    def title(self) -> str:
        """What it is called: never KID alone."""
        return f"KID on features of {self.judge.spec.name}"

    @classmethod
    def open(cls, counting: Counting) -> Kid:
        """Open it with the run's judge.

        Raises:
            PalimpsestError: the run has none, or one without features.
        """
        if not hasattr(counting.judge, "features"):
            raise PalimpsestError(
                "the measure 'kid' compares features, and the run's judge has none"
            )
        return cls(counting.judge)

    def compared(self, behind: str, theirs: Any, ours: Any, of: Sequence[Hashable]) -> list[Number]:
        """Return the distance of two sets; arguments as of `Frechet.compared`."""
        rate = distances.jackknifed(distances.kernel, theirs, ours, of)
        return [Number.of(self.title + behind, rate, "")]
