"""The revival point: how much fine-tuning on other things brings an erased concept back.

George et al., "The Illusion of Unlearning", CVPR 2025. A concept counts as revived at the first
test, counted from 0 before any training, at which

- *both* the classifier's accuracy reaches its threshold and the mean CLIP cosine exceeds its own:
  the paper's definition, as it is cited;
- either of them alone does: what the authors' published code logs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def points(scores: Sequence[Score], threshold: Threshold) -> dict[str, int | None]:
    """Return the revival point by each definition.

    Args:
        scores: the tests in order, the first before any training.
        threshold: the accuracy to reach and the cosine to exceed.

    Returns:
        `both`, `classifier` and `clip`, each the position of the first test that crosses, None if
        none does. A definition is left out if one of its scores is NaN in any test.
    """
    accurate = [score.accuracy >= threshold.accuracy for score in scores]
    fitting = [score.cosine > threshold.cosine for score in scores]
    both = [a and b for a, b in zip(accurate, fitting, strict=True)]
    judged = not any(math.isnan(score.accuracy) for score in scores)
    fitted = not any(math.isnan(score.cosine) for score in scores)
    found = {"both": (both, judged and fitted), "classifier": (accurate, judged)}
    found["clip"] = fitting, fitted
    return {name: _first(crossed) for name, (crossed, known) in found.items() if known}


def _first(crossed: Sequence[bool]) -> int | None:
    return crossed.index(True) if True in crossed else None
