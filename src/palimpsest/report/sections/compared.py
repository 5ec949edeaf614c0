"""Methods side by side on the same prompts and seeds: what each leaves, and each pair's difference.

The page's section and `palimpsest compare` both show it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge.rates import MEANINGS
from palimpsest.methods import Number
from palimpsest.metrics import paired, rates
from palimpsest.metrics.clusters import Cluster
from palimpsest.metrics.paired import Difference
from palimpsest.report.arrange import Section
from palimpsest.report.load import Key, Material
from palimpsest.report.prose import apart

Judged = dict[str, list[tuple[int, bool | None]]]
"""Number → each picture's position, and whether it counts as good."""


@dataclass(frozen=True)
class Pair:
    """By how much one method's number is above another's."""

    number: str
    ours: str
    theirs: str
    difference: Difference
    corrected: float = 1.0
    """Its p by Holm's correction, over all pairs of that number."""


@dataclass(frozen=True)
class Comparison:
    """Methods that made a model forget the same, or that brought it back."""

    concept: str
    spec: str
    """Who judged, and how the pictures were drawn."""
    methods: tuple[str, ...]
    numbers: dict[str, list[Number]]
    """Number → one a method."""
    pairs: tuple[Pair, ...]

    @property
    def by_methods(self) -> dict[tuple[str, str], dict[str, Pair]]:
        """Two methods → number → how they differ."""
        found: dict[tuple[str, str], dict[str, Pair]] = {}
        for pair in self.pairs:
            found.setdefault((pair.ours, pair.theirs), {})[pair.number] = pair
        return found

    @property
    def meanings(self) -> dict[str, str]:
        """What each number counts."""
        return {name: MEANINGS[name] for name in self.numbers}


def compared(sections: Sequence[Section]) -> list[Comparison]:
    """Return a comparison for all erasures of one concept that can be compared."""
    found = [compare(runs) for runs in comparable(sections) if len(runs) > 1]
    return [comparison for comparison in found if comparison.numbers]


def comparable(sections: Sequence[Section]) -> list[list[Material]]:
    """Return the judged erasures of each concept that differ in nothing but their method."""
    groups: dict[Hashable, list[Material]] = {}
    for run in (section.erasure for section in sections if section.erasure):
        if run.target and run.record.judge and run.pictures and not run.record.theme:
            groups.setdefault(tuple(_about(run).values()), []).append(run)
    return list(groups.values())


def compare(runs: Sequence[Material]) -> Comparison:
    """Compare methods on the pictures of the same prompts and seeds.

    Raises:
        PalimpsestError: two runs differ in more than their method, or nobody judged them.
    """
    first, names = runs[0], _names(runs)
    for run in runs:
        check(first, run)
    keys = list(first.pictures)
    clusters = [first.pictures[key].cluster for key in keys]
    said = [_judged(run, keys) for run in runs]
    numbers = {
        title: [Number.of(title, _rate(each[title], clusters)) for each in said]
        for title, some in said[0].items()
        if some
    }
    pairs = [pair for title in numbers for pair in _pairs(title, names, said, clusters)]
    judge = first.record.judge
    return Comparison(
        first.target.brief,
        f"{judge.name if judge else 'nobody'}, {first.record.model.sampling}",
        tuple(names),
        numbers,
        tuple(pairs),
    )


def _pairs(
    title: str, names: Sequence[str], said: Sequence[Judged], clusters: Sequence[Cluster]
) -> list[Pair]:
    """Return how each two methods differ in one number."""
    pairs = [
        Pair(title, ours, theirs, found)
        for (ours, a), (theirs, b) in combinations(zip(names, said, strict=True), 2)
        if (found := _difference(a[title], b[title], clusters))
    ]
    corrected = paired.holm([pair.difference.p for pair in pairs])
    return [replace(pair, corrected=p) for pair, p in zip(pairs, corrected, strict=True)]


def check(one: Material, other: Material) -> None:
    """Refuse two runs that differ in more than their method.

    Raises:
        PalimpsestError: naming the first thing that they differ in, or the run that was not judged.
    """
    for run in (one, other):
        if not run.target or run.record.judge is None or not run.pictures:
            why = "was not judged" if run.pictures else "holds no pictures"
            raise PalimpsestError(f"{run.run.folder}: this run {why}; it cannot be compared")
    ours, theirs = _about(one), _about(other)
    for what, own in ours.items():
        if own != theirs[what]:
            raise PalimpsestError(
                f"{one.run.name} and {other.run.name} differ in their {what}, so their numbers "
                f"cannot be compared{_how(own, theirs[what])}"
            )


def _about(run: Material) -> dict[str, Hashable]:
    """Return what must be the same, by its name."""
    record, judge = run.record, run.record.judge
    asked = {(key, *sorted(picture.asks.items())) for key, picture in run.pictures.items()}
    return {
        "concept": run.target.name,
        "model": (record.model.name, record.model.identity),
        "way of drawing": record.model.sampling,
        "judge": (judge.name, judge.version, judge.resolution) if judge else None,
        "prompts": frozenset(asked),
    }


def _how(ours: Any, theirs: Any) -> str:
    """Return the two, if they are words."""
    if isinstance(ours, frozenset):
        return f": {len(ours & theirs)} pictures are of the same prompt and seed"
    one, other = (" ".join(map(str, x)) if isinstance(x, tuple) else x for x in (ours, theirs))
    return f": {one} and {other}"


def _names(runs: Sequence[Material]) -> list[str]:
    """Return what the methods are called, by more than their title where two share it."""
    titles = [run.title for run in runs]
    return [
        t if titles.count(t) == 1 else f"{t} ({apart(run, [r for r in runs if r.title == t])})"
        for t, run in zip(titles, runs, strict=True)
    ]


def _judged(run: Material, keys: Sequence[Key]) -> Judged:
    """Return what the judge says of a run's pictures, each by its position among the keys."""
    pictures = [run.pictures[key] for key in keys]
    heads = set.intersection(*(set(p.labels) for p in pictures))
    labels = {kind: [p.labels[kind] for p in pictures] for kind in heads}
    return rates.judgements(run.target.key, [p.asks for p in pictures], labels)


def _rate(some: Sequence[tuple[int, bool | None]], clusters: Sequence[Cluster]) -> rates.Rate:
    return rates.rate((good for _, good in some), [clusters[i] for i, _ in some])


def _difference(
    ours: Sequence[tuple[int, bool | None]],
    theirs: Sequence[tuple[int, bool | None]],
    clusters: Sequence[Cluster],
) -> Difference | None:
    """Return the difference over what both could judge; None where that is nothing."""
    both = [
        (float(a), float(b), clusters[i])
        for (i, a), (_, b) in zip(ours, theirs, strict=True)
        if a is not None and b is not None
    ]
    return paired.difference(*zip(*both, strict=True)) if both else None
