"""What a recovery won back beyond what it taught the model that never knew the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from palimpsest import metrics
from palimpsest.types import Rate

Curve = Sequence[Mapping[str, Any]]
"""A relearning curve as `run.json` holds it: rows with `step` and `says`, one 0 or 1 a picture."""


def at_each_step(erased: Curve, gold: Curve) -> list[tuple[int, Rate]]:
    """Accuracy above gold at every step that both curves were measured at.

    Returns:
        (step, difference with its 95 % paired bootstrap interval), in order; empty where the
        curves do not hold what the judge said of each picture.
    """
    return [(step, metrics.above(ours, theirs)) for step, ours, theirs in _paired(erased, gold)]


def advantage(erased: Curve, gold: Curve) -> Rate | None:
    """The area between the two curves over the steps they span: the relearning advantage.

    1 is a concept that is there from the first step and that gold never learns, 0 one that comes
    back no sooner than gold learns it. The interval is a bootstrap over pictures, each of which
    takes its whole course of steps along. None where there is nothing to compare.
    """
    points = _paired(erased, gold)
    if len(points) < 2:
        return None
    pictures = range(len(points[0][1]))
    ours = [_area([(step, says[i]) for step, says, _ in points]) for i in pictures]
    theirs = [_area([(step, says[i]) for step, _, says in points]) for i in pictures]
    return metrics.above(ours, theirs)


def _paired(erased: Curve, gold: Curve) -> list[tuple[int, list[float], list[float]]]:
    theirs = {point["step"]: point.get("says") or [] for point in gold}
    points = [(p["step"], p.get("says") or [], theirs.get(p["step"], [])) for p in erased]
    same = [p for p in points if p[1] and len(p[1]) == len(p[2])]
    return [(int(s), list(map(float, a)), list(map(float, b))) for s, a, b in same]


def _area(line: Sequence[tuple[int, float]]) -> float:
    """Mean height of a line between its first and its last step, by trapezia."""
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(line))
    return total / (line[-1][0] - line[0][0])
