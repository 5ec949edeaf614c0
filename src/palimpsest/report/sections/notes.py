"""What recoveries noted besides their curves: figures as a list, rows as a table.

Only the form of a note is known here. `X` and `X, 95 %` are a figure and its interval. A note
called `X, in T` says which rows of the table `T` something happened at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.core.typed import build
from palimpsest.methods import Number
from palimpsest.report.arrange import Section
from palimpsest.report.prose import attempt_label
from palimpsest.report.sections.table import Entry, entry

INTERVAL = ", 95 %"
"""Behind a figure's name: its interval."""
WITHIN = ", in "
"""Between what happened and the title of the table whose rows are meant."""
SHARE = "accuracy"
"""Figures of this name are shares."""


def notes(section: Section) -> list[dict[str, Any]]:
    """Return what the section's recoveries noted, those on the erased model first."""
    erasure = section.erasure.title if section.erasure else "the erased model"
    names = {"erased": erasure, "gold": "gold", "unedited": "the unedited model"}
    return [
        {"name": attempt_label(run, among), "on": names[on], "open": on == "erased"}
        | _noted(run.record.notes)
        for run, among, on in section.attempts
        if run.record.notes
    ]


def _noted(noted: Mapping[str, Any]) -> dict[str, Any]:
    tables = {title: note for title, note in noted.items() if _is_table(note)}
    plain = {title: note for title, note in noted.items() if note and not _is_table(note)}
    return {
        "figures": {title: _figures(note) for title, note in plain.items()},
        "tables": [_table(rows, _marks(title, plain)) for title, rows in tables.items()],
    }


def _is_table(note: Any) -> bool:
    rows = isinstance(note, list) and all(isinstance(row, Mapping) for row in note)
    return rows and any(note)  # without a column there is no table


def _figures(note: Any) -> list[tuple[str, Entry]]:
    """Return every figure of a note, with its interval if it has one."""
    if not isinstance(note, Mapping):
        return [("", Entry(_said(note)))]
    return [(name, _figure(note, name)) for name in note if not _bounds(name, note)]


def _bounds(name: str, row: Mapping[str, Any]) -> bool:
    """Return whether a name is that of another figure's interval."""
    return name.endswith(INTERVAL) and name.removesuffix(INTERVAL) in row


def _table(rows: Sequence[Mapping[str, Any]], marks: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the columns, and each row's figures with what happened there."""
    columns = list(dict.fromkeys(name for row in rows for name in row if not _bounds(name, row)))
    lines = [
        ([_figure(row, name) for name in columns], marks.get(_said(row.get(columns[0])), []))
        for row in rows
    ]
    return {"columns": columns, "rows": lines}


def _marks(title: str, plain: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what happened at which line of a table, by the line's first cell."""
    found: dict[str, list[str]] = {}
    for name, note in plain.items():
        what, _, where = name.partition(WITHIN)
        if where == title and isinstance(note, Mapping):
            for by, line in note.items():
                if line is not None:
                    found.setdefault(_said(line), []).append(f"{what}: {by}")
    return found


def _figure(row: Mapping[str, Any], name: str) -> Entry:
    """Return a figure with its interval, if it has one; nothing if the row has no such figure."""
    value, interval = row.get(name, ""), row.get(f"{name}{INTERVAL}")
    if not isinstance(value, float):
        return Entry(_said(value))
    try:
        low, high = build(tuple[float, ...], interval)
    except (TypeError, ValueError):  # none, or none of two ends
        low = high = math.nan
    return entry(Number(name, value, low, high, unit="%" if name == SHARE else ""))


def _said(value: Any) -> str:
    if value is None:
        return "never"
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
