"""One number over several concepts, each of which has its own with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from palimpsest.metrics.rates import Rate


def mean_of(rates: Sequence[Rate]) -> Rate:
    """Return the mean over concepts, each of which weighs the same however many pictures it has.

    The concepts are those that they are, and no draw: the interval says nothing of others. It is
    put together from theirs: the lower end lies √Σ(p_i − l_i)²/k below the mean, the upper one
    √Σ(u_i − p_i)²/k above it (Zou and Donner 2008, Stat. Med. 27: MOVER for a sum of independent
    parameters), so that it is no point where all of them are 100 %.

    Args:
        rates: of independent pictures; those that are NaN are left out.

    Returns:
        The mean with its 95 % interval; `n` and `missing` are sums. NaN without any.
    """
    seen = [rate for rate in rates if rate.value == rate.value]
    missing, k = sum(rate.missing for rate in rates), len(seen)
    if not k:
        return Rate(math.nan, math.nan, math.nan, 0, missing)
    value = sum(rate.value for rate in seen) / k
    below = math.sqrt(sum((rate.value - rate.low) ** 2 for rate in seen)) / k
    above = math.sqrt(sum((rate.high - rate.value) ** 2 for rate in seen)) / k
    return Rate(value, value - below, value + above, sum(rate.n for rate in seen), missing)
