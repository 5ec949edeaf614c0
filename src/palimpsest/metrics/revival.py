"""The revival point: how much fine-tuning on other things brings an erased concept back.

George et al., "The Illusion of Unlearning", CVPR 2025. A concept counts as revived at the first
test, counted from 0 before any training, at which

- *both* the classifier's accuracy reaches its threshold and the mean CLIP cosine exceeds its own:
  the paper's definition, as it is cited;
- either of them alone does: what the authors' published code logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One test of a model; NaN where it was not judged so."""

    accuracy: float = math.nan
    """Share of the concept's pictures in which the classifier says it, 0 to 1."""
    cosine: float = math.nan
    """Mean CLIP cosine of the pictures with their own prompts, −1 to 1."""


@dataclass(frozen=True)
class Threshold:
    """What a score must reach, or exceed."""

    accuracy: float
    """A share, 0 to 1, to be reached."""
    cosine: float
    """A cosine, −1 to 1, to be exceeded."""

    def classifier(self, score: Score) -> bool:
        """Return whether the accuracy reaches its threshold."""
        return score.accuracy >= self.accuracy

    def clip(self, score: Score) -> bool:
        """Return whether the CLIP cosine exceeds its threshold."""
        return score.cosine > self.cosine

    def both(self, score: Score) -> bool:
        """Return whether both happens in the same test."""
        return self.classifier(score) and self.clip(score)


def first(crossed: Iterable[bool]) -> int | None:
    """Return the position of the first success; None if there is none."""
    return next((i for i, success in enumerate(crossed) if success), None)


def points(scores: Sequence[Score], threshold: Threshold) -> dict[str, int | None]:
    """Return the revival point by each definition.

    Args:
        scores: the tests in order, the first before any training.
        threshold: the accuracy to reach and the cosine to exceed.

    Returns:
        `both`, `classifier` and `clip`, each the position of the first test that crosses, None if
        none does. A definition is left out if one of its scores is NaN in any test.
    """
    judged = not any(math.isnan(score.accuracy) for score in scores)
    fitted = not any(math.isnan(score.cosine) for score in scores)
    asked = {"both": judged and fitted, "classifier": judged, "clip": fitted}
    return {
        name: first(getattr(threshold, name)(score) for score in scores)
        for name, known in asked.items()
        if known
    }
