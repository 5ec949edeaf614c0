"""Pure functions from judgements and features to numbers with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from palimpsest.metrics.clusters import FEWEST, Cluster, spread, worth


@dataclass(frozen=True)
class Rate:
    """A share of successes with its 95 % Wilson interval."""

    value: float
    """Share of successes, 0 to 1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Number of judged pictures (or picture-and-head pairs)."""
    missing: int = 0
    """Number of those that could not be judged; they are no part of `n`."""

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


Z_95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson(hits: int, n: int, m: float | None = None) -> Rate:
    """Return a rate with its Wilson score interval (Wilson 1927, JASA 22).

    With p = hits/n the ends are  (p + z²/2m ± z·√(p(1−p)/m + z²/4m²)) / (1 + z²/m).
    Nothing judged gives NaN with the interval [0, 1]. With m = n it is that of scipy's
    `binomtest(hits, n).proportion_ci(method="wilson")`, which knows no other m.

    Args:
        hits: successes.
        n: judgements.
        m: how many independent judgements they are worth; n if None.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    p, share = hits / n, Z_95**2 / (n if m is None else m)
    reach = math.sqrt(p * (1 - p) * share + share**2 / 4)
    low = 0.0 if hits == 0 else (p + share / 2 - reach) / (1 + share)
    high = 1.0 if hits == n else (p + share / 2 + reach) / (1 + share)
    return Rate(p, low, high, n)


def pictures_for(width: float, p: float = 0.5, deff: float = 1.0) -> int:
    """Return the fewest pictures whose Wilson interval is no wider than asked for.

    Args:
        width: from end to end, above 0.
        p: the rate that is expected; one half needs most.
        deff: design effect of pictures that share prompts and seeds.
    """
    if not width > 0:
        raise ValueError(f"no interval is {width} wide")
    return max(1, math.ceil(deff * independent(width, p) * (1 - 1e-12)))


def independent(width: float, p: float) -> float:
    """Return how many independent judgements have a Wilson interval of that width.

    Squared, width · (1 + s) = 2√(p(1 − p)s + s²/4) is quadratic in s = z²/m.

    Args:
        width: from end to end; 1 or more is that of none.
        p: the rate.
    """
    if width >= 1:
        return 0.0
    width = max(width, 1e-9)
    square, line = 1 - width**2, 4 * p * (1 - p) - 2 * width**2
    root = math.sqrt(line**2 + 4 * square * width**2)
    return Z_95**2 * (root + line) / (2 * width**2)  # z²/s, of the positive root s


def rate(successes: Iterable[bool | None], clusters: Sequence[Cluster] | None = None) -> Rate:
    """Return the rate over judgements; None is a picture that could not be judged.

    Its interval is Wilson's for as many judgements as these are worth (`clusters.worth`).

    Args:
        successes: one a judgement.
        clusters: each one's prompt and noise; all independent if None.
    """
    every = list(successes)
    judged = [float(success) for success in every if success is not None]
    m = worth(judged, _of_seen([success is not None for success in every], clusters))
    found = wilson(round(sum(judged)), len(judged), m)
    return replace(found, missing=len(every) - len(judged))


def _of_seen(seen: Sequence[bool], clusters: Sequence[Cluster] | None) -> list[Cluster] | None:
    """Return the clusters of those that were judged."""
    if clusters is None:
        return None
    return [cluster for cluster, judged in zip(clusters, seen, strict=True) if judged]


def agrees(label: str | None, name: str) -> bool | None:
    """Return whether a judge's label is that name; None where it could not judge."""
    return None if label is None else label == name


def differs(label: str | None, name: str) -> bool | None:
    """Return whether a judge's label is another name; None where it could not judge."""
    return None if label is None else label != name


def judgements(
    erased: Sequence[tuple[str, str]],
    asks: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[str | None]],
) -> dict[str, list[tuple[int, bool | None]]]:
    """Return what UA, IRA and CRA count: each picture's position, and whether it counts as good.

    UA: of the erased concepts that prompts ask for, those that the judge does not see in the
    picture. IRA: of the other concepts of their domains that prompts ask for, those that the judge
    names right. CRA: likewise of all concepts of other domains. Prompts that ask for an erased
    concept are no part of IRA and CRA, also where the judge sees nothing of its domain.

    Args:
        erased: domain and name of each erased concept.
        asks: for each picture, what its prompt asks for, by domain.
        labels: for each domain that the judge sees, what it says of each picture.

    Returns:
        `UA`, `IRA` and `CRA`; the last two are missing where no prompt asks for such concepts.
    """
    domains = {kind for kind, _ in erased if kind in labels}
    own = {i for i, ask in enumerate(asks) if not ask.items().isdisjoint(erased)}
    found: dict[str, list[tuple[int, bool | None]]] = {"UA": []}
    for i, ask in enumerate(asks):
        for kind, name in ask.items():
            if kind not in labels:
                continue
            if (kind, name) in erased:
                found["UA"].append((i, differs(labels[kind][i], name)))
            elif i not in own:
                title = "IRA" if kind in domains else "CRA"
                found.setdefault(title, []).append((i, agrees(labels[kind][i], name)))
    return {title: found[title] for title in ("UA", "IRA", "CRA") if title in found}


def unlearning(
    erased: Sequence[tuple[str, str]],
    asks: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[str | None]],
    clusters: Sequence[Cluster] | None = None,
) -> dict[str, Rate]:
    """Return UA, IRA and CRA of erased concepts (UnlearnCanvas, Zhang et al. 2024).

    Args:
        erased: as of `judgements`, like `asks` and `labels`.
        asks: for each picture.
        labels: for each domain.
        clusters: each picture's prompt and noise; all independent if None.
    """
    return _rated(judgements(erased, asks, labels), clusters)


def _rated(
    found: Mapping[str, Sequence[tuple[int, bool | None]]], clusters: Sequence[Cluster] | None
) -> dict[str, Rate]:
    """Return the rate of each title's judgements of pictures."""
    return {
        title: rate((good for _, good in some), clusters and [clusters[i] for i, _ in some])
        for title, some in found.items()
    }


def joint(
    pair: Mapping[str, str],
    asks: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[str | None]],
    clusters: Sequence[Cluster] | None = None,
) -> dict[str, Rate]:
    """Return what is left where an object in a style was erased, of each part of the grid.

    After the style-object combinations of UnlearnCanvas (Zhang et al. 2024).

    Args:
        pair: `object` and `style` → the names whose combination was erased.
        asks: for each picture, the object and the style that its prompt asks for.
        labels: for either domain, what the judge says of each picture.
        clusters: each picture's prompt and noise; all independent if None.

    Returns:
        `joint UA`: of both, the pictures in which the judge does not see both. `SC` and `OC`: of
        the style with other objects, and of the object in other styles, those in which it sees the
        style, and the object. `UP`: of neither, the names that it says right.
    """
    names = ("joint UA", "SC", "OC", "UP")
    found: dict[str, list[tuple[int, bool | None]]] = {name: [] for name in names}
    for i, ask in enumerate(asks):
        seen = {kind: agrees(labels[kind][i], ask[kind]) for kind in pair if kind in ask}
        hits = [kind for kind in pair if ask.get(kind) == pair[kind]]
        if len(hits) == 2:
            said = [*seen.values()]
            found["joint UA"].append((i, None if None in said else not all(said)))
        elif hits:
            found["SC" if hits == ["style"] else "OC"].append((i, seen[hits[0]]))
        else:
            found["UP"] += [(i, each) for each in seen.values()]
    return _rated({name: judged for name, judged in found.items() if judged}, clusters)


def accuracy(
    kind: str,
    name: str,
    labels: Mapping[str, Sequence[str | None]],
    clusters: Sequence[Cluster] | None = None,
) -> Rate:
    """Return how often the judge says the concept."""
    return rate((agrees(label, name) for label in labels[kind]), clusters)


def above(
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[Cluster] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Rate:
    """By how much one mean exceeds another, from judgements of the same prompts and seeds.

    The interval is the middle 95 % of a bootstrap over pairs (Efron 1979), of as many as they are
    worth where they share prompts or seeds (`clusters.worth`). Two pairs that nobody
    saw are added to those drawn from, half of one for each outcome of a pair, so that none of 36
    against none of 36 is a difference of about 0 and not of exactly 0 (Agresti and Min 2005, Stat.
    Med. 24: with half a count in each cell, intervals keep their promise at small n).
    scipy's bootstrap can neither add pairs nor draw fewer than there are.

    Args:
        ours: one judgement per picture, 0 or 1, or a share between them.
        theirs: the judgement of its counterpart, in the same order.
        clusters: each pair's prompt and noise; all independent if None.
        draws: bootstrap samples.
        seed: fixes them.

    Returns:
        The difference, -1 to 1, with its 95 % interval and the number of pairs.

    Raises:
        ValueError: the two are not of one length.
    """
    import numpy as np

    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} judgements against {len(theirs)}: they must come in pairs")
    n = len(ours)
    if n == 0:
        return Rate(math.nan, -1.0, 1.0, 0)
    seen = np.subtract(ours, theirs, dtype=float)
    m = max(round(worth(seen.tolist(), clusters)), 1)
    atoms, weights = np.unique([*seen, 1.0, -1.0, 0.0], return_inverse=True)
    counts = np.bincount(weights, weights=[*[m / n] * n, 0.5, 0.5, 1.0])
    drawn = np.random.default_rng(seed).multinomial(m, counts / counts.sum(), size=draws)
    low, high = np.quantile(drawn @ atoms / m, [0.025, 0.975])
    value = float(seen.mean())
    return Rate(value, min(float(low), value), max(float(high), value), n)


def mean(
    values: Sequence[float],
    clusters: Sequence[Cluster] | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Rate:
    """Return the mean with its 95 % interval by Student's t; NaN is left out and counted.

    It is as wide as the prompts and seeds that values share ask for (`clusters.spread`). Fewer than
    three pictures are too few: `low` and `high` are NaN.

    Args:
        values: one a picture.
        clusters: each one's prompt and noise; all independent if None.
        within: the range of a mean, which its interval does not leave.
    """
    judged = [not math.isnan(value) for value in values]
    seen = [value for value, is_judged in zip(values, judged, strict=True) if is_judged]
    n, missing = len(seen), len(values) - len(seen)
    if n == 0:
        return Rate(math.nan, math.nan, math.nan, 0, missing)
    middle, found = sum(seen) / n, spread(seen, _of_seen(judged, clusters))
    if found.pictures < FEWEST:
        return Rate(middle, math.nan, math.nan, n, missing)
    half = found.t * math.sqrt(found.variance)
    low, high = max(middle - half, within[0]), min(middle + half, within[1])
    return Rate(middle, low, high, n, missing)


def too_few(n: int, value: float, low: float) -> bool:
    """Return whether a number has no interval because it is over one or two pictures."""
    return 0 < n < FEWEST and not math.isnan(value) and math.isnan(low)


def membership(
    members: Sequence[float], others: Sequence[float], splits: int = 10, seed: int = 0
) -> Rate:
    """Return how well a loss tells what a model was trained on from the rest (0.5 is chance).

    The attack of Yeom et al. 2018 (arXiv:1709.01604): what lies below a threshold is called a
    member. The threshold is the best one on a random half of either side; the accuracy is that on
    the other halves, both sides weighed alike, averaged over `splits` such halvings.

    Args:
        members: losses of what was trained on.
        others: losses of the same sort of thing, not trained on.
        splits: random halvings.
        seed: fixes them.

    Returns:
        The mean accuracy; `low` and `high` are one standard deviation over the splits from it. NaN
        with fewer than two on a side.
    """
    import numpy as np

    n = len(members) + len(others)
    if min(len(members), len(others)) < 2:
        return Rate(math.nan, math.nan, math.nan, n)
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        (a, b), (c, d) = (np.array_split(rng.permutation(s), 2) for s in (members, others))
        cuts = np.concatenate([a, c, [np.inf]])
        fit = [(a <= cut).mean() + (c > cut).mean() for cut in cuts]
        cut = cuts[int(np.argmax(fit))]
        found.append(((b <= cut).mean() + (d > cut).mean()) / 2)
    middle, spread = float(np.mean(found)), float(np.std(found))
    return Rate(middle, middle - spread, middle + spread, n)
