"""Summaries as the tables of a paper: methods are rows, measures are columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from palimpsest.core.legend import headed, legend
from palimpsest.report.results.rows import SHOWN
from palimpsest.report.results.summaries import ONE, ONE_ERASURE, Summary

SORTS = {
    "erase": "Erasures of",
    "recover": "Recoveries of",
    "evaluate": "Asked for",
}
TOOK = ("Training time", "Peak memory", "Gradient evaluations")
"""What a run took, as far as it stands in a table."""
BESIDES = ("Edit norm", "Lost in rounding", "Patch", "Queries", "Peak memory on the GPU", "κ")
"""What stands in no table: it says nothing of what was reached."""
ON = {"gold": "gold", "unedited": "the unedited model"}
MARKS = {ONE: "†", ONE_ERASURE: "‡"}
FOOTNOTES = {
    ONE: f"† {ONE}: its interval is about other pictures, not about other seeds.",
    ONE_ERASURE: f"‡ {ONE_ERASURE}: its seeds are those of the attack.",
}


@dataclass
class Line:
    """One method's row."""

    title: str
    seeds: int
    note: str
    """What it rests on, if that is one seed or one erasure."""
    cells: dict[str, Summary] = field(default_factory=dict)
    """Column → number."""

    @property
    def mark(self) -> str:
        """The sign of its note, behind its title."""
        return MARKS.get(self.note, "")


@dataclass
class Table:
    """What was done about the same concepts with one model and the same prompts, by one judge."""

    title: str
    model: str
    spec: str
    """Who judged, and how the pictures were drawn."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column → what it counts and which way is good."""
    lines: list[Line] = field(default_factory=list)

    @property
    def heads(self) -> list[str]:
        """The columns' names, each with the way that is good."""
        return [headed(name, meaning) for name, meaning in self.columns.items()]

    @property
    def caption(self) -> str:
        """What it is, on what and by whom."""
        return f"{self.title}: {self.model}{f', by {self.spec}' if self.spec else ''}"

    @property
    def notes(self) -> list[str]:
        """What is to be said below it: of how many pictures, and what rests on one seed."""
        counts = {
            name: " or ".join(map(str, sorted({cell.n for cell in cells if cell.n})))
            for name in self.columns
            if (cells := [line.cells[name] for line in self.lines if name in line.cells])
        }
        told = "; ".join(f"{name} {n}" for name, n in counts.items() if n)
        noted = {line.note for line in self.lines}
        own = [told for note, told in FOOTNOTES.items() if note in noted]
        return [*own, *([f"With 95 % intervals. Pictures: {told}."] if told else [])]

    @property
    def splits(self) -> list[tuple[str, str, Summary]]:
        """Row, column and number of what is over several seeds."""
        return [
            (line.title, name, cell)
            for line in self.lines
            for name, cell in line.cells.items()
            if name not in TOOK
            and any(sd > 0 for sd in (cell.sd_seeds, cell.sd_pictures, cell.sd_rest))
        ]


def tables(summaries: Iterable[Summary]) -> list[Table]:
    """Return the tables of some summaries, each with its rows in their order."""
    shown = [s for s in summaries if s.measure.partition(",")[0] not in BESIDES and not s.concept]
    groups: dict[tuple[str, ...], list[Summary]] = {}
    for s in shown:
        sort = "erase" if s.kind == "original" else s.kind
        groups.setdefault((sort, s.identity, s.concepts, s.prompts), []).append(s)
    found = [t for (sort, *_), group in groups.items() for t in _of_group(sort, group)]
    return [table for table in found if table.columns]


def _of_group(sort: str, group: Sequence[Summary]) -> list[Table]:
    """Return a table for each spec of shares, the first one's with what else was measured."""
    names, first, by_spec = _names(group), {}, {}
    for s in group:
        if s.share and s.judge:
            first.setdefault(s.variant, s.spec)
    for s in group:
        spec = s.spec if s.share and s.judge else first.get(s.variant, "")
        by_spec.setdefault(spec, []).append(s)
    return [_table(sort, spec, some, names) for spec, some in by_spec.items()]


def _table(sort: str, spec: str, some: Sequence[Summary], names: dict[str, str]) -> Table:
    lead, leaves = some[0], SHOWN if sort == "erase" else "UA"
    table = Table(f"{SORTS.get(sort, 'Of')} {lead.concepts}", lead.model, spec)
    lines: dict[str, Line] = {}
    for s in some:
        if s.measure == leaves:
            continue  # the other one says the same
        line = lines.setdefault(s.variant, Line(names[s.variant], s.seeds, s.note))
        if s.measure not in line.cells:
            line.cells[s.measure] = s
            if s.value == s.value:
                table.columns.setdefault(s.measure, s.meaning)
    table.lines = sorted(lines.values(), key=lambda line: line.title != "unedited")
    first = {name: table.columns.pop(name) for name in (SHOWN,) if name in table.columns}
    last = {name: table.columns.pop(name) for name in TOOK if name in table.columns}
    table.columns = first | table.columns | last
    return table


def measures(told: Iterable[Table]) -> dict[str, str]:
    """Return each measure that stands in tables and what it counts."""
    return legend((name, meaning) for t in told for name, meaning in t.columns.items())


def _names(group: Sequence[Summary]) -> dict[str, str]:
    """Return what each variant is called: by its title, and by more where two share that."""
    found = {s.variant: s for s in group}
    for parts in ((), ("preset",), ("preset", "settings"), ("preset", "settings", "variant")):
        named = {variant: _named(s, parts) for variant, s in found.items()}
        if max(Counter(named.values()).values(), default=1) == 1:
            break
    return named


def _named(s: Summary, parts: Sequence[str]) -> str:
    more = ", ".join(filter(None, (getattr(s, part) for part in parts)))
    title = f"{s.title} ({more})" if more and s.kind != "original" else s.title
    return title if s.kind != "recover" else f"{title} on {ON.get(s.on) or s.subject_title}"


def points(value: float, share: bool) -> str:
    """Return a standard deviation, of a share in points of per cent."""
    if math.isnan(value):
        return "–"
    return f"{100 * value:.1f}" if share else f"{value:.3g}"
