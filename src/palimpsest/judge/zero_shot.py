"""What a CLIP still names, zero-shot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.data.pairs import Labelled
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates
from palimpsest.toolbox.clip_losses import zero_shot

MEANINGS = {
    "forget accuracy @1": "pictures of what is to be forgotten that are still named right. Low "
    "is thorough.",
    "forget accuracy @5": "pictures of what is to be forgotten whose name is still among the "
    "first five. Low is thorough.",
    "retain accuracy @1": "pictures of everything else that are named right. High is gentle.",
    "retain accuracy @5": "pictures of everything else whose name is among the first five. High "
    "is gentle.",
}


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot accuracies over what was forgotten and over everything else."""

    test: Labelled
    """Pictures of every class, disjoint from those that a method chooses by."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """How many classes there are to choose from, and the pictures' size."""
        side = self.test.images.shape[-1]
        return f"zero-shot over {len(self.test.prompts)} classes, {side} px"

    @property
    def about(self) -> dict[str, Any]:
        """How many pictures it is measured on, and which."""
        return {"test": len(self.test), "files": {"test": self.test.digest}}

    def collect(self, seen: Seen) -> list[int]:
        """Return how many classes each picture is nearer to than its own."""
        return zero_shot(seen.model, self.test)

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return shares of pictures with Wilson intervals."""
        parts: dict[str, list[int]] = {"forget": [], "retain": []}
        for label, rank in zip(self.test.labels, found, strict=True):
            parts["forget" if label in seen.task.names else "retain"].append(rank)
        return [
            Number.of(f"{name} accuracy @{k}", rates.rate(rank < k for rank in ranks))
            for name, ranks in parts.items()
            for k in (1, 5)
        ]
