"""Two methods on the same prompts and seeds: how they differ, and whether that may be chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from palimpsest.metrics import rates
from palimpsest.metrics.clusters import Cluster, spread, units
from palimpsest.metrics.rates import Rate

DRAWS = 10_000
"""Flips that are drawn where there are more; all are counted of up to thirteen prompts."""


@dataclass(frozen=True)
class Difference:
    """One method's rate less another's."""

    rate: Rate
    """The difference, −1 to 1, with its 95 % interval."""
    p: float
    """Probability of one at least as large, to either side, if the two were alike: the larger of
    `sign_flip`, which needs no model, and `t_test`, which also knows of shared seeds."""


def difference(
    ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[Cluster]
) -> Difference:
    """Return how two methods' judgements of the same prompts and seeds differ.

    Args:
        ours: one judgement a picture, 0 or 1.
        theirs: its counterpart's, in the same order.
        clusters: each pair's prompt and noise.

    Raises:
        ValueError: the two are not of one length.
    """
    found = rates.above(ours, theirs, clusters)
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Difference(found, max(sign_flip(each, clusters), t_test(each, clusters)))


def sign_flip(differences: Sequence[float], clusters: Sequence[Cluster]) -> float:
    """Return the two-sided p of a sign-flip permutation test over prompts (Fisher 1935, §21).

    If the methods were alike, a prompt's differences could as well have come out the other way
    round, all together. Of up to thirteen prompts every flip is counted, of more 10,000 are drawn,
    of a fixed seed, and the one seen counts among them (Phipson and Smyth 2010).

    Args:
        differences: one a picture.
        clusters: each one's prompt and noise; what is flipped is `clusters.units`.
    """
    from scipy.stats import permutation_test

    sums: dict[Hashable, float] = defaultdict(float)
    for value, unit in zip(differences, units(clusters), strict=True):
        sums[unit] += value
    some = [total for total in sums.values() if total]  # a flip of nothing changes nothing
    if len(some) < 2:
        return 1.0
    return float(
        permutation_test(
            (some,),
            lambda x, axis: x.sum(axis),
            permutation_type="samples",
            n_resamples=DRAWS,
            vectorized=True,
            rng=0,
        ).pvalue
    )


def t_test(differences: Sequence[float], clusters: Sequence[Cluster]) -> float:
    """Return the two-sided p of a mean by its cluster-robust variance (`clusters.spread`).

    Where all differences are alike the variance says nothing: 0, or 1 of no difference.
    """
    from scipy.stats import t

    found, middle = spread(differences, clusters), sum(differences) / len(differences)
    if not found.variance > 0:
        return float(not middle or found.pictures < 2)
    return float(2 * t.sf(abs(middle) / found.variance**0.5, found.df))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979, Scand. J. Stat. 6), in their order.

    The smallest of k is taken k times, the next k − 1 times and so on; none is less than one
    before it, nor more than 1. Whatever is then below 5 % is chance in one family of twenty.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    grown = accumulate((ps[i] * (len(ps) - rank) for rank, i in enumerate(order)), max)
    found = {i: min(p, 1.0) for i, p in zip(order, grown, strict=True)}
    return [found[i] for i in range(len(ps))]
