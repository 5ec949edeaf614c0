"""How far two who look at the same pictures agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from palimpsest.metrics import rates
from palimpsest.metrics.clusters import FEWEST, Cluster, units
from palimpsest.metrics.rates import Rate


def kappa(
    ours: Sequence[str | None],
    theirs: Sequence[str | None],
    clusters: Sequence[Cluster] | None = None,
    draws: int = 2_000,
    seed: int = 0,
) -> Rate:
    """Return Cohen's κ: agreement beyond that of chance (Cohen 1960, Educ. Psychol. Meas. 20).

    κ = (p_o − p_e)/(1 − p_e), with p_o the share of pictures that both call alike and p_e what that
    would be if each gave its own labels at random. 1 is full agreement, 0 that of chance. It is NaN
    where both give one and the same label throughout: nothing tells agreement from habit.

    The interval is the middle 95 % of a bootstrap over prompts (`clusters.units`), samples left out
    in which κ is undefined; fewer than three of them are too few for one. Where all are called
    alike, its lower end is κ at the lower end of p_o's Wilson interval: no sample could differ.
    Where one gives a single label throughout κ is 0 whatever the other says, and has no interval.

    Args:
        ours: one label a picture; None where it could not be judged.
        theirs: the other's, in the same order.
        clusters: each picture's prompt and noise; all independent if None.
        draws: bootstrap samples.
        seed: fixes them.

    Returns:
        κ, −1 to 1, over the pictures that both could judge; the others are `missing`.

    Raises:
        ValueError: the two are not of one length.
    """
    import numpy as np

    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} labels against {len(theirs)}: they must come in pairs")
    where = clusters or [(i, i) for i in range(len(ours))]
    both = [row for row in zip(ours, theirs, where, strict=True) if None not in row[:2]]
    n, missing = len(both), len(ours) - len(both)
    if not n:
        return Rate(math.nan, math.nan, math.nan, 0, missing)
    names = {name: i for i, name in enumerate(sorted({str(x) for row in both for x in row[:2]}))}
    groups = {unit: i for i, unit in enumerate(dict.fromkeys(units([c for *_, c in both])))}
    tables = np.zeros((len(groups), len(names), len(names)))
    for (a, b, _), unit in zip(both, units([c for *_, c in both]), strict=True):
        tables[groups[unit], names[str(a)], names[str(b)]] += 1
    whole = tables.sum(0)
    value = float(_kappas(whole[None])[0])
    constant = 1 in (whole.any(0).sum(), whole.any(1).sum())
    if constant or len(groups) < FEWEST:
        return Rate(value, math.nan, math.nan, n, missing)
    g = len(groups)
    drawn = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), size=draws)
    low, high = np.nanquantile(_kappas(np.tensordot(drawn, tables, 1)), [0.025, 0.975])
    if value == 1:
        agreed = rates.rate([True] * n, [c for *_, c in both])
        low = 1 - (1 - agreed.low) / (1 - _chance(whole[None])[0])
    return Rate(value, max(min(float(low), value), -1.0), max(float(high), value), n, missing)


def _kappas(tables: Any) -> Any:
    """Return κ of each of some tables of counts, (n, labels, labels); NaN where undefined."""
    import numpy as np

    alike = np.trace(tables, axis1=1, axis2=2) / tables.sum((1, 2))
    beyond = 1 - _chance(tables)
    return 1 - np.divide(1 - alike, beyond, out=np.full(len(alike), np.nan), where=beyond > 1e-12)


def _chance(tables: Any) -> Any:
    """Return p_e of each."""
    return (tables.sum(1) * tables.sum(2)).sum(1) / tables.sum((1, 2)) ** 2
