"""Pure functions from judgements and features to numbers with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace


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


def wilson(hits: int, n: int, z: float = Z_95) -> Rate:
    """Return a rate with its Wilson score interval (Wilson 1927, JASA 22).

    With p = hits/n the ends are  (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    Nothing judged gives NaN with the interval [0, 1].
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    p = hits / n
    middle = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if hits == 0 else (middle - spread) / scale
    high = 1.0 if hits == n else (middle + spread) / scale
    return Rate(p, low, high, n)


def rate(successes: Iterable[bool | None]) -> Rate:
    """Return the rate over judgements; None is a picture that could not be judged."""
    every = list(successes)
    judged = [success for success in every if success is not None]
    return replace(wilson(sum(judged), len(judged)), missing=len(every) - len(judged))


def agrees(label: str | None, name: str) -> bool | None:
    """Return whether a judge's label is that name; None where it could not judge."""
    return None if label is None else label == name


def differs(label: str | None, name: str) -> bool | None:
    """Return whether a judge's label is another name; None where it could not judge."""
    return None if label is None else label != name


def unlearning(
    erased: Sequence[tuple[str, str]],
    asks: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[str | None]],
) -> dict[str, Rate]:
    """Return UA, IRA and CRA of erased concepts (UnlearnCanvas, Zhang et al. 2024).

    UA: of the erased concepts that prompts ask for, those that the judge does not see in the
    picture. IRA: of the other concepts of their domains that prompts ask for, those that the judge
    names right. CRA: likewise of all concepts of other domains. Prompts that ask for an erased
    concept are no part of IRA and CRA.

    Args:
        erased: domain and name of each erased concept.
        asks: for each picture, what its prompt asks for, by domain.
        labels: for each domain, what the judge says of each picture.

    Returns:
        `UA`, `IRA` and `CRA`; the last two are missing where no prompt asks for such concepts.
    """
    domains = {kind for kind, _ in erased}
    wanted = [(i, *pair) for i, ask in enumerate(asks) for pair in ask.items()]
    own = [(i, kind, name) for i, kind, name in wanted if (kind, name) in erased]
    asked = {i for i, *_ in own}
    rest = [(i, kind, name) for i, kind, name in wanted if i not in asked]
    found = {"UA": rate(differs(labels[kind][i], name) for i, kind, name in own)}
    for title, inside in (("IRA", True), ("CRA", False)):
        some = [(i, kind, name) for i, kind, name in rest if (kind in domains) == inside]
        if some:
            found[title] = rate(agrees(labels[kind][i], name) for i, kind, name in some)
    return found


def accuracy(kind: str, name: str, labels: Mapping[str, Sequence[str | None]]) -> Rate:
    """Return how often the judge says the concept."""
    return rate(agrees(label, name) for label in labels[kind])


def above(
    ours: Sequence[float], theirs: Sequence[float], draws: int = 10_000, seed: int = 0
) -> Rate:
    """By how much one mean exceeds another, from judgements of the same prompts and seeds.

    The interval is the middle 95 % of a bootstrap over pairs (Efron 1979). Two pairs that nobody
    saw are added to those drawn from, half of one for each outcome of a pair, so that none of 36
    against none of 36 is a difference of about 0 and not of exactly 0 (Agresti and Min 2005, Stat.
    Med. 24: with half a count in each cell, intervals keep their promise at small n).

    Args:
        ours: one judgement per picture, 0 or 1, or a share between them.
        theirs: the judgement of its counterpart, in the same order.
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
    atoms, weights = np.unique([*seen, 1.0, -1.0, 0.0], return_inverse=True)
    counts = np.bincount(weights, weights=[*[1.0] * n, 0.5, 0.5, 1.0])
    drawn = np.random.default_rng(seed).multinomial(n, counts / counts.sum(), size=draws)
    low, high = np.quantile(drawn @ atoms / n, [0.025, 0.975])
    value = float(seen.mean())
    return Rate(value, min(float(low), value), max(float(high), value), n)


def mean(values: Sequence[float]) -> Rate:
    """Return the mean with its 95 % interval by Student's t; NaN is left out and counted."""
    from scipy.stats import t

    seen = [value for value in values if not math.isnan(value)]
    n, missing = len(seen), len(values) - len(seen)
    if n == 0:
        return Rate(math.nan, math.nan, math.nan, 0, missing)
    middle = sum(seen) / n
    if n == 1:
        return Rate(middle, math.nan, math.nan, 1, missing)
    deviation = math.sqrt(sum((value - middle) ** 2 for value in seen) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return Rate(middle, middle - half, middle + half, n, missing)


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
