"""The leaderboard: a line for each erasure over seeds, and for each method over concepts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.methods import Number
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.strata import mean_of
from palimpsest.report.load import Material
from palimpsest.report.results import Row, Summary, rows_of, summaries
from palimpsest.report.results.rows import SHOWN, settings
from palimpsest.runs.groups import Compared

RATES = ("UA", "IRA", "CRA")
MOST_TOLD = 3
"""Settings that are named where they tell two variants of a method apart."""


@dataclass(frozen=True)
class Line:
    """An erasure of one concept over its seeds, or a method over its concepts."""

    method: str
    note: str
    """What tells it from another variant of the method."""
    settings: str
    model: str
    judge: str
    spec: str
    """What stands behind its numbers: the judge, and how the pictures were drawn."""
    concepts: tuple[str, ...]
    kinds: tuple[str, ...]
    seeds: int
    """The fewest that one of its concepts rests on."""
    numbers: dict[str, Number]
    """UA, IRA and CRA, and `Concept shown` after the recovery that brought most back."""
    best: str
    """Which recovery that was."""
    variants: tuple[str, ...]
    runs: tuple[str, ...]
    second: bool = False
    """Whether the judge is not the runs' own, but one who looked besides."""
    concept_group: str = ""
    """Of a campaign that has groups of concepts, such as `unseen`: the one it is over."""
    scope: tuple[str, str] | None = None
    """Of a method's line: the kind of concepts and the group that it is over, each empty of all."""

    @property
    def group(self) -> tuple[str, str]:
        """What must be the same to compare lines: the model and the judge."""
        return self.model, self.judge

    @property
    def kept(self) -> Number | None:
        """The mean of IRA and CRA, or the one there is."""
        some = [self.numbers[name] for name in ("IRA", "CRA") if name in self.numbers]
        return mean(some) if some else None

    @property
    def resists(self) -> Number | None:
        """The share in which nothing brought it back."""
        shown = self.numbers.get(SHOWN)
        if shown is None:
            return None
        return replace(shown, value=1 - shown.value, low=1 - shown.high, high=1 - shown.low)

    @property
    def text(self) -> str:
        """What a search finds it by."""
        parts = (self.method, self.note, self.model, self.judge, *self.concepts, *self.kinds)
        return " ".join((*parts, self.best, *self.runs)).lower()


@dataclass(frozen=True)
class Cell:
    """How often the concept shows after one recovery."""

    number: Number | None
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """Erasers by recoveries, of one model and judge."""

    group: tuple[str, str]
    columns: list[tuple[str, str]]
    """Each recovery's name, and what tells it from another."""
    rows: list[tuple[Line, list[Cell]]]
    """Before any, and after each."""
    others: list[tuple[str, tuple[str, str], list[Cell]]]
    """The same recoveries on models that were not erased: which, its scope as of a line."""

    @property
    def second(self) -> bool:
        """Whether its judge looked besides the runs' own at all of it."""
        return all(line.second for line, _ in self.rows)


class Board:
    """What a site's runs say, put together by seeds and by concepts."""

    def __init__(self, runs: Mapping[str, Material], compared: Compared | None = None) -> None:
        """Read the numbers of a site's runs, by their names, and what a campaign says of them."""
        self.compared = compared or Compared()
        rows = rows_of(runs.values())
        self.over = summaries(rows)
        self.runs = runs
        self.row = {row.run: row for row in rows if row.kind != "original"}
        self.names = labels(runs.values())
        self.lines = [line for group in self._erasures().values() if (line := self._line(group))]

    @cached_property
    def groups(self) -> list[tuple[str, str]]:
        """Models and judges, those that most lines have first."""
        every = [line.group for line in self.lines]
        return sorted(dict.fromkeys(every), key=lambda group: -every.count(group))

    @cached_property
    def methods(self) -> list[Line]:
        """A line for each method over all of its concepts, over those of each kind, each group."""
        kinds = list(dict.fromkeys(kind for line in self.lines for kind in line.kinds))
        found = []
        for kind in ("", *kinds) if len(kinds) > 1 else ("",):
            some = [x for x in self.lines if not kind or x.kinds == (kind,)]
            for group in ("", *self.concept_groups):
                own = [x for x in some if not group or x.concept_group == group]
                found += _over_concepts(own, (kind, group))
        return found

    @cached_property
    def concept_groups(self) -> list[str]:
        """The campaign's groups that some erased concept is in."""
        known = {line.concept_group for line in self.lines}
        return [group for group in self.compared.groups if group in known]

    def part(self, line: Line, group: str) -> Line | None:
        """Return a method's line over one group of its concepts; None where it has none."""
        scope = (line.scope[0] if line.scope else "", group)
        alike = line.method, line.note, line.settings, line.group, line.spec, scope
        return self._by_scope.get(alike)

    @cached_property
    def _by_scope(self) -> dict[tuple[Any, ...], Line]:
        every = self.methods
        return {(m.method, m.note, m.settings, m.group, m.spec, m.scope): m for m in every}

    def matrices(self) -> list[Matrix]:
        """Return how often the concept shows after each recovery, of each model and judge."""
        methods = self.methods
        found = [self._matrix(g, [m for m in methods if m.group == g]) for g in self.groups]
        return [matrix for matrix in found if matrix.columns]

    def _erasures(self) -> dict[tuple[str, str, str], list[Summary]]:
        groups: dict[tuple[str, str, str], list[Summary]] = {}
        for each in self.over:
            if each.kind == "erase" and each.on == "erased" and not each.concept:
                groups.setdefault((each.variant, each.judge, each.spec), []).append(each)
        return groups

    def _line(self, group: Sequence[Summary]) -> Line | None:
        """Return the line of a variant by one judge; None where it says no rate."""
        known = [s for s in group if s.measure in RATES and not math.isnan(s.value)]
        numbers = {s.measure: _number(s) for s in known}
        if not numbers:
            return None
        first = group[0]
        tried = self.recoveries(first.variant, first.judge)
        worst = max(tried, key=lambda s: s.value, default=None)
        if worst is not None:
            numbers[SHOWN] = _number(worst)
        title, note = self.names[first.title, first.settings]
        return Line(
            title,
            note,
            first.settings,
            self._model(first),
            first.judge,
            first.spec,
            tuple(first.concepts.split(", ")),
            tuple(first.kinds.split(", ")),
            first.seeds,
            numbers,
            worst.title if worst is not None else "",
            (first.variant,),
            first.runs,
            self._second(first),
            self.compared.group(self.runs[first.runs[0]].record.names),
        )

    def recoveries(self, variant: str, judge: str) -> list[Summary]:
        """Return what each recovery from a variant ended with."""
        return [s for s in self._shown(judge, "erased") if self._subject(s) == variant]

    def _shown(self, judge: str, on: str) -> list[Summary]:
        return [
            s
            for s in self.over
            if s.kind == "recover" and s.on == on and s.judge == judge
            if s.measure == SHOWN and not s.concept and not math.isnan(s.value)
        ]

    def _subject(self, summary: Summary) -> str:
        """Return the variant that a recovery attacked; empty where it is not on the site."""
        subject: Row | None = self.row.get(self.row[summary.runs[0]].subject)
        return subject.variant if subject else ""

    def _matrix(self, group: tuple[str, str], lines: Sequence[Line]) -> Matrix:
        model, judge = group
        tried = {v: self.recoveries(v, judge) for line in lines for v in line.variants}
        columns = list(dict.fromkeys(_which(s) for some in tried.values() for s in some))
        rows = []
        for line in lines:
            before = self._before(line)
            cells = [
                _cell([s for v in line.variants for s in tried[v] if _which(s) == c])
                for c in columns
            ]
            rows.append((line, [Cell(before), *cells]))
        others = []
        scopes = dict.fromkeys(line.scope for line in lines if line.scope)
        for on, name in (("gold", "Gold, which never knew it"), ("unedited", "The unedited model")):
            every = [s for s in self._shown(judge, on) if self._model(s) == model]
            for scope in scopes:
                some = [s for s in every if self._within(s, scope)]
                cells = [_cell([s for s in some if _which(s) == c]) for c in columns]
                if any(cell.number for cell in cells):
                    others.append((name, scope, [Cell(None), *cells]))
        return Matrix(group, [self.names[c] for c in columns], rows, others)

    def _within(self, summary: Summary, scope: tuple[str, str]) -> bool:
        """Return whether a number is of concepts of a kind and of a group."""
        kind, group = scope
        names = self.runs[summary.runs[0]].record.names
        return kind in ("", summary.kinds) and group in ("", self.compared.group(names))

    def _model(self, summary: Summary) -> str:
        """Return a model's name, with its fingerprint where two models have the name."""
        own = _plain(summary.model)
        return f"{own} ({summary.identity[:6]})" if self._models[own] > 1 else own

    @cached_property
    def _models(self) -> Counter[str]:
        """How many models bear a name."""
        return Counter({s.identity: _plain(s.model) for s in self.over}.values())

    def _second(self, summary: Summary) -> bool:
        judge = self.runs[summary.runs[0]].record.judge
        return judge is not None and judge.name != summary.judge

    def _before(self, line: Line) -> Number | None:
        ua = line.numbers.get("UA")
        return ua and replace(ua, name=SHOWN, value=1 - ua.value, low=1 - ua.high, high=1 - ua.low)


Names = dict[tuple[str, str], tuple[str, str]]
"""A method's title and a digest of its settings → its name, and what tells it from another."""


def labels(runs: Iterable[Material]) -> Names:
    """Return a name for each choice of settings, and what tells it from others of the name."""
    by_title: dict[str, dict[str, Material]] = {}
    for run in runs:
        by_title.setdefault(run.title, {}).setdefault(settings(run.record), run)
    return {
        (title, digest): (title, _apart(run, [*variants.values()]))
        for title, variants in by_title.items()
        for digest, run in variants.items()
    }


def _apart(run: Material, variants: Sequence[Material]) -> str:
    """Return the settings in which a run differs from others of its method; empty if in none."""
    own = run.record.arguments
    differ = [n for n in own if any(v.record.arguments.get(n) != own[n] for v in variants)]
    told = [f"{name} {own[name]}" for name in differ[:MOST_TOLD]]
    return ", ".join(told) + (" …" if len(differ) > MOST_TOLD else "")


def mean(numbers: Sequence[Number]) -> Number:
    """Return the mean of numbers of several concepts, as `strata.mean_of`."""
    rate = mean_of([Rate(n.value, n.low, n.high, n.n, n.missing) for n in numbers])
    return replace(numbers[0], **asdict(rate))


def _over_concepts(lines: Sequence[Line], scope: tuple[str, str]) -> list[Line]:
    """Return a line for each method, model and judge over its concepts.

    What was done twice about one concept, such as with two anchors, is in lines of its own.
    """
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        own = (line.method, line.settings, *line.group, line.spec)
        nth = 0
        while any(other.concepts == line.concepts for other in groups.get((*own, nth), ())):
            nth += 1
        groups.setdefault((*own, nth), []).append(line)
    found = [(nth, _together(group, scope)) for (*_, nth), group in groups.items()]
    return [_numbered(line, nth) if nth else line for nth, line in found]


def _numbered(line: Line, nth: int) -> Line:
    return replace(line, note=", ".join(filter(None, (line.note, f"variant {nth + 1}"))))


def _together(lines: Sequence[Line], scope: tuple[str, str]) -> Line:
    names = dict.fromkeys(name for line in lines for name in line.numbers)
    numbers = {n: mean([x.numbers[n] for x in lines if n in x.numbers]) for n in names}
    best = dict.fromkeys(line.best for line in lines if line.best)
    return replace(
        lines[0],
        concepts=tuple(sorted({c for line in lines for c in line.concepts})),
        kinds=tuple(sorted({k for line in lines for k in line.kinds})),
        seeds=min(line.seeds for line in lines),
        numbers=numbers,
        best=next(iter(best)) if len(best) == 1 else "each concept's best" if best else "",
        variants=tuple(v for line in lines for v in line.variants),
        runs=tuple(run for line in lines for run in line.runs),
        concept_group=scope[1],
        scope=scope,
    )


def _cell(found: Sequence[Summary]) -> Cell:
    runs = tuple(run for summary in found for run in summary.runs)
    return Cell(mean([_number(s) for s in found]), runs) if found else Cell(None)


def _which(summary: Summary) -> tuple[str, str]:
    return summary.title, summary.settings


def _plain(model: str) -> str:
    """Return a model's name; of a folder or a file, its own."""
    return Path(model).name if Path(model).is_absolute() else model or "model"


def _number(s: Summary) -> Number:
    """Return a summary as a number of a table."""
    return Number(
        s.measure, s.value, s.low, s.high, s.n, s.unit, s.spec, missing=s.missing, meaning=s.meaning
    )
