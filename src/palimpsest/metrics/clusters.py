"""What judgements are worth that share a prompt or a seed: they are not independent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

Cluster = tuple[Hashable, Hashable]
"""The prompt that a judged picture was drawn from, and the noise: its seed and index."""

FEWEST = 3
"""Pictures below which a mean has no interval: from two, a 95 % interval says nothing."""


@dataclass(frozen=True)
class Spread:
    """How far a mean may lie from that of other prompts and other seeds."""

    variance: float
    """Of the mean; NaN with fewer than two pictures."""
    deff: float
    """Design effect: how many times that of independent values it is, 1 or more."""
    df: float
    """Degrees of freedom that it was estimated with."""
    pictures: int
    """Different pairs of prompt and noise."""

    @property
    def t(self) -> float:
        """How many standard errors a 95 % interval reaches to either side, by Student's t."""
        return t_95(self.df)


def t_95(df: float) -> float:
    """Return Student's quantile of a two-sided 95 % interval."""
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    return float(stdtrit(df, 0.975))


def spread(values: Sequence[float], clusters: Sequence[Cluster] | None = None) -> Spread:
    """Return the two-way cluster-robust variance of a mean (Cameron, Gelbach and Miller 2011).

    V = V_prompt + V_noise − V_both, each V with its factor G/(G − 1) of G clusters, and never less
    than any of its parts nor than that of independent values. Where all share one prompt, or one
    noise, nothing can be told of others, and V is about the other way alone.

    The degrees of freedom are Satterthwaite's of V as a sum of one part a way,
    (V_prompt − V_both/2) + (V_noise − V_both/2): from G − 1 of the fewer clusters, where their part
    is all, up to the number of pictures less one.

    Args:
        values: one a judgement.
        clusters: each one's prompt and noise; all independent if None.
    """
    n = len(values)
    keys = list(range(n)) if clusters is None else list(clusters)
    middle = sum(values) / n
    errors = [value - middle for value in values]
    alone, (both, pictures) = _variance(errors, range(n))[0], _variance(errors, keys)
    if pictures < 2:
        return Spread(math.nan, float(n), math.nan, pictures)
    sides = [keys] if clusters is None else list(zip(*clusters, strict=True))
    ways = [(v, g) for v, g in (_variance(errors, side) for side in sides) if g > 1]
    half = both / 2 if len(ways) == 2 else 0.0
    whole = max(sum(v for v, _ in ways) - 2 * half, both, alone, *(v for v, _ in ways))  # eq. 2.10
    unsure = sum(max(v - half, 0) ** 2 / (g - 1) for v, g in ways)
    df = min(whole**2 / unsure, pictures - 1) if unsure else pictures - 1
    return Spread(whole, whole / alone if alone else 1.0, df, pictures)


def worth(values: Sequence[float], clusters: Sequence[Cluster] | None = None) -> float:
    """Return how many independent judgements some are worth, at most their number.

    n/deff · (t(n − 1)/t(df))², the effective sample size of Korn and Graubard (1998, Survey
    Methodology 24). Where all judgements are alike the variance says nothing, and it is the number
    of pictures.
    """
    n = len(values)
    if clusters is None or n < 2:
        return n
    found = spread(values, clusters)
    if found.pictures < 2 or min(values) == max(values):
        return found.pictures
    return n / found.deff * (t_95(n - 1) / max(found.t, t_95(n - 1))) ** 2


def _variance(errors: Sequence[float], keys: Iterable[Hashable]) -> tuple[float, int]:
    """Return the variance of a mean by one way of clusters, and how many these are."""
    sums: dict[Hashable, float] = defaultdict(float)
    for error, key in zip(errors, keys, strict=True):
        sums[key] += error
    g = len(sums)
    return sum(s * s for s in sums.values()) / len(errors) ** 2 * g / max(g - 1, 1), g


ENOUGH = 6
"""Prompts from which on a test over prompts can come below 5 %: 2/2⁶."""


def units(clusters: Sequence[Cluster]) -> list[Hashable]:
    """Return what a resampling takes as one: each judgement's prompt.

    It is the noise where there are fewer than six prompts and more noises than prompts.
    """
    prompts, noises = ([c[side] for c in clusters] for side in (0, 1))
    few = len(set(prompts)) < min(ENOUGH, len(set(noises)))
    return noises if few else prompts
