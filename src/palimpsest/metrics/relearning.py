"""What recoveries brought back beyond what they taught the model that never knew the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from palimpsest.metrics import rates
from palimpsest.metrics.clusters import Cluster
from palimpsest.metrics.rates import Rate


@dataclass(frozen=True)
class CurvePoint:
    """One point of a relearning curve."""

    step: int
    """Optimisation steps taken so far."""
    evaluations: int
    """Gradient evaluations so far: steps × accumulation."""
    rate: Rate
    """How often the judge says the concept."""
    says: tuple[bool, ...] = ()
    """Whether it says so of each picture; the same prompts and seeds at every point."""
    clusters: tuple[tuple[int, int], ...] = ()
    """Which prompt and which seed each is of, counted from 0; all independent if empty."""


Curve = Sequence[CurvePoint]
"""A relearning curve; it may be empty."""


def at_each_step(erased: Curve, gold: Curve) -> list[tuple[int, Rate]]:
    """Accuracy above gold at every step that both curves were measured at.

    Returns:
        (step, difference with its 95 % paired bootstrap interval), in order; empty where the
        curves do not hold what the judge said of each picture.
    """
    shared = clusters(erased)
    return [
        (step, rates.above(ours, theirs, shared)) for step, ours, theirs in _paired(erased, gold)
    ]


def clusters(curve: Curve) -> Sequence[Cluster] | None:
    """Return which prompt and seed each picture of a curve is of; None where it does not say."""
    return next((point.clusters for point in curve if point.clusters), None)


def advantage(erased: Curve, gold: Curve) -> Rate | None:
    """Return the area between the two curves over the steps they span: the relearning advantage.

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
    return rates.above(ours, theirs, clusters(erased))


def won_back(curve: Curve) -> Rate | None:
    """Accuracy at the curve's end above that at its beginning, picture by picture."""
    said = [point.says for point in curve]
    if len(said) < 2 or not said[0] or len(said[0]) != len(said[-1]):
        return None
    after, before = (list(map(float, said[i])) for i in (-1, 0))
    return rates.above(after, before, clusters(curve))


def within(curve: Curve, budget: int | None) -> list[CurvePoint]:
    """Return the points of a curve that cost no more than a budget of gradient evaluations."""
    return [p for p in curve if budget is None or p.evaluations <= budget]


def won(curve: Curve) -> bool:
    """Return whether it ended with every picture won, with nothing left to look for."""
    return bool(curve and curve[-1].says) and all(curve[-1].says)


def _paired(erased: Curve, gold: Curve) -> list[tuple[int, list[float], list[float]]]:
    """Return what was said on both at the steps that they share; one that ended won stays so."""
    ours, theirs = _by_step(erased, gold), _by_step(gold, erased)
    same = [s for s in sorted(ours.keys() & theirs.keys()) if len(ours[s]) == len(theirs[s])]
    return [(step, ours[step], theirs[step]) for step in same]


def _by_step(curve: Curve, other: Curve) -> dict[int, list[float]]:
    said = {p.step: list(map(float, p.says)) for p in curve if p.says}
    if said and won(curve):
        end = max(said)
        said |= {p.step: said[end] for p in other if p.step > end}
    return said


def _area(line: Sequence[tuple[int, float]]) -> float:
    """Mean height of a line between its first and its last step, by trapezia."""
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(line))
    return total / (line[-1][0] - line[0][0])
