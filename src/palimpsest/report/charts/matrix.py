"""A table whose cells are coloured by their value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palimpsest.report.charts.figure import tag

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """One value of a matrix."""

    text: str
    share: float = 0.0
    """How strongly it is coloured, from 0 to 1."""
    note: str = ""
    """Small print under it, such as its interval."""
    marked: bool = False
    told: str = ""
    """What hovering tells."""


def matrix(
    rows: Sequence[tuple[str | Markup, Sequence[Cell | None]]],
    columns: Sequence[str | Markup],
    *,
    title: str | Markup,
    corner: str | Markup = "",
    hue: int = 2,
) -> Markup:
    """Return a table of coloured cells; a dash stands where there is none.

    Args:
        rows: each with its head, and a cell a column.
        columns: their heads.
        title: what the cells say.
        corner: what the rows are, over their heads.
        hue: of the cells.
    """
    head = (tag("th", name, scope="col") for name in columns)
    body = (tag("tr", tag("th", name, scope="row"), *map(_cell, cells)) for name, cells in rows)
    first = tag("th", corner, scope="col") if corner else tag("td")
    table = tag(
        "table",
        tag("caption", title),
        tag("thead", tag("tr", first, *head)),
        tag("tbody", *body),
        class_=f"matrix hue-{hue}",
    )
    return tag("div", table, class_="scroll")


def _cell(cell: Cell | None) -> Markup:
    if cell is None:
        return tag("td", "–")
    note = tag("small", cell.note) if cell.note else ""
    sort = "here" if cell.marked else None
    share = f"--share: {min(max(cell.share, 0.0), 1.0):.2f}"
    return tag("td", cell.text, note, class_=sort, style=share, title=cell.told or None)
