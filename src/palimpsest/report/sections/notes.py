"""What recoveries noted besides their curves: figures as a list, rows as a table.

Only the form of a note is known here. `X` and `X, 95 %` are a figure and its interval. A note
called `X, in T` says which rows of the table `T` something happened at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.methods import Number
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.prose import attempt_label
from palimpsest.report.sections.table import Entry, entry

INTERVAL = ", 95 %"
"""Behind a figure's name: its interval."""
WITHIN = ", in "
"""Between what happened and the title of the table whose rows are meant."""
SHARE = "accuracy"
"""Figures of this name are shares."""


@dataclass(frozen=True)
class Row:
    """One line of a noted table."""

    cells: list[Entry]
    marks: list[str]
    """What happened at this line."""


@dataclass(frozen=True)
class Table:
    """Rows that were noted under one title."""

    title: str
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Noted:
    """All that one run noted."""

    name: str
    on: str
    """Whom it was tried on."""
    first: bool
    """Whether it is about the erased model, and no control."""
    figures: list[tuple[str, list[tuple[str, Entry]]]]
    tables: list[Table]


def notes(section: Section) -> list[Noted]:
    """What the section's recoveries noted, those on the erased model first."""
    erasure = section.erasure.title if section.erasure else "the erased model"
    told = [
        *((run, section.recoveries, erasure) for run in section.recoveries),
        *((run, section.taught, "gold") for run in section.taught),
        *((run, section.controls, "the unedited model") for run in section.controls),
    ]
    return [
        _noted(run, attempt_label(run, among), on) for run, among, on in told if run.record.notes
    ]


def _noted(run: Material, name: str, on: str) -> Noted:
    noted: Mapping[str, Any] = run.record.notes
    tables = {str(k): v for k, v in noted.items() if _is_table(v)}
    plain = {str(k): v for k, v in noted.items() if v and not _is_table(v)}
    return Noted(
        name,
        on,
        on not in ("gold", "the unedited model"),
        [(title, list(_figures(note))) for title, note in plain.items()],
        [_table(title, rows, _marks(title, plain)) for title, rows in tables.items()],
    )


def _is_table(note: Any) -> bool:
    return isinstance(note, list) and bool(note) and all(isinstance(row, Mapping) for row in note)


def _figures(note: Any) -> Iterator[tuple[str, Entry]]:
    """Every figure of a note, with its interval if it has one."""
    if not isinstance(note, Mapping):
        yield "", Entry(_said(note), "", "", None)
        return
    for name, value in note.items():
        if not _bounds(name, note):
            yield str(name), _entry(str(name), value, note.get(f"{name}{INTERVAL}"))


def _bounds(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a name is that of another figure's interval."""
    return name.endswith(INTERVAL) and name.removesuffix(INTERVAL) in row


def _table(title: str, rows: Sequence[Mapping[str, Any]], marks: Mapping[Any, list[str]]) -> Table:
    columns = list(
        dict.fromkeys(str(name) for row in rows for name in row if not _bounds(str(name), row))
    )
    lines = []
    for row in rows:
        cells = [
            _entry(name, row[name], row.get(f"{name}{INTERVAL}"))
            if name in row
            else Entry("", "", "", None)
            for name in columns
        ]
        lines.append(Row(cells, marks.get(_said(row.get(columns[0])), [])))
    return Table(title, columns, lines)


def _marks(title: str, plain: Mapping[str, Any]) -> dict[str, list[str]]:
    """What happened at which line of a table, by the line's first cell."""
    found: dict[str, list[str]] = {}
    for name, note in plain.items():
        what, _, where = name.partition(WITHIN)
        if where == title and isinstance(note, Mapping):
            for by, line in note.items():
                if line is not None:
                    found.setdefault(_said(line), []).append(f"{what}: {by}")
    return found


def _entry(name: str, value: Any, interval: Any) -> Entry:
    if not isinstance(value, float):
        return Entry(_said(value), "", "", None)
    sure = isinstance(interval, list) and len(interval) == 2
    low, high = interval if sure else (math.nan, math.nan)
    return entry(Number(name, value, low, high, unit="%" if name == SHARE else ""))


def _said(value: Any) -> str:
    if value is None:
        return "never"
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
