"""Whether a CLIP shows what it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.data.pairs import Pairs
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates

MEANINGS = {
    "membership inference": "how well a threshold on the loss tells pictures that the model "
    "was trained on from others of the same thing. 50 % is chance."
}


@dataclass(frozen=True)
class Membership:
    """How well a threshold on CLIP's loss tells its training pictures from others."""

    outside: Pairs
    """Captioned pictures of what was forgotten that CLIP was not trained on."""
    seed: int = 0
    """Fixes the halvings."""

    spec = "threshold on 1 − cos, 10 halvings, ± one standard deviation"
    meanings = MEANINGS

    @property
    def about(self) -> dict[str, Any]:
        """Which pictures it is measured on."""
        return {"files": {"outside": self.outside.digest}}

    def collect(self, seen: Seen) -> list[list[float]]:
        """Return 1 − cos of every picture with its own caption: those to forget, and the others."""
        return [_losses(seen.model, seen.task.forget), _losses(seen.model, self.outside)]

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the attack's accuracy."""
        return [Number.of("membership inference", rates.membership(*found, seed=self.seed))]


def _losses(model: Any, pairs: Any) -> list[float]:
    return (1 - (model.images(pairs.images) * model.texts(pairs.texts)).sum(-1)).tolist()
