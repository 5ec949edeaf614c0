"""A run as a notebook shows it: its numbers beside the unedited model's."""

from __future__ import annotations

import math
from html import escape

from palimpsest.methods import Number
from palimpsest.runs.record import Record

STYLE = 'style="text-align:right"'


def html(name: str, record: Record) -> str:
    """Return a table of a run's numbers; whatever stands in its record is text there."""
    before = {number.name: number for number in record.baseline}
    rows = [
        f"<tr><td>{escape(row.name)}</td>"
        + "".join(
            f"<td {STYLE}>{text}</td>"
            for text in (str(row.n or ""), _said(before.get(row.name)), _said(row))
        )
        + "</tr>"
        for row in record.numbers
    ]
    title = f"{record.title}: {', '.join(record.names)} ({record.status or 'empty'}, {name})"
    head = "<tr><th></th><th>n</th><th>unedited</th><th>this run</th></tr>"
    table = f"<table>{head}{''.join(rows)}</table>" if rows else ""
    return f"<div><p>{escape(title)}</p>{table}</div>"


def _said(number: Number | None) -> str:
    if number is None or math.isnan(number.value):
        return "–"
    share = number.unit == "%"
    form, factor = (".1f", 100) if share else (".4g", 1)
    unit = f" {number.unit}" if number.unit else ""
    told = f"{factor * number.value:{form}}{unit}"
    if not math.isnan(number.low):
        told += f" [{factor * number.low:{form}}, {factor * number.high:{form}}]"
    return escape(told)
