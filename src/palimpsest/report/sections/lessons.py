"""A CLIP or a LLaVA that was made to forget names: what went, in words and side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.methods import Number
from palimpsest.report.load import Material
from palimpsest.report.prose import apart, in_part
from palimpsest.report.sections.table import MEANINGS, Entry, costs, entry

MUCH = 0.2
"""Who loses more than this share of everything else has forgotten too much."""


@dataclass(frozen=True)
class Sort:
    """How runs of one kind are told."""

    family: str
    columns: tuple[str, ...]
    """The numbers to compare runs by: first what is left, and then what is kept."""
    kept: str
    """The number that says what is kept of the rest."""


SORTS = {
    "clip": Sort(
        "CLIP",
        ("forget accuracy @1", "forget accuracy @5", "retain accuracy @1", "membership inference"),
        "retain accuracy @1",
    ),
    "llava": Sort(
        "LLaVA",
        ("name said", "others named", "others named, object", "others named, identity"),
        "others named",
    ),
}
"""Kind of run → how it is told."""

COSTS = {"Training time": "s", "Peak memory": "MB", "Patch": "kB"}


def headline(run: Material) -> str:
    """Return what happened, in one line."""
    left, kept = changes(run)
    forgot = 1 - left[1].value / left[0].value if left[0].value else math.nan
    if math.isnan(forgot):
        return f"{run.title} and {run.names}"
    did = "made" if forgot >= 0.3 else "did not make"
    said = f"{run.title} {did} {model(run)} forget {run.names}{in_part(forgot)}"
    lost = kept[0].value - kept[1].value
    return said + (", and much else with it" if lost > MUCH * kept[0].value else "")


def compared(runs: Sequence[tuple[str, Material]]) -> list[dict[str, Any]]:
    """Return a table for all runs over the same sets: the unedited model, then a row each.

    Args:
        runs: each with the place of its section on the page.
    """
    groups: dict[str, list[tuple[str, Material]]] = {}
    for place, run in runs:
        groups.setdefault(_sets(run), []).append((place, run))
    return [_table(group) for group in groups.values()]


def _table(group: Sequence[tuple[str, Material]]) -> dict[str, Any]:
    runs = [run for _, run in group]
    first = runs[0]
    sort = SORTS[first.kind]
    columns = [name for name in sort.columns if any(_of(r.record.numbers, name) for r in runs)]
    heads = {**dict.fromkeys(columns, ""), **COSTS}
    found = [_of(first.record.numbers, name) for name in columns]
    return {
        "title": f"{first.names} in {model(first)}",
        "note": "; ".join(dict.fromkeys(row.spec for row in found if row and row.spec)),
        "heads": heads,
        "meanings": {n: MEANINGS.get(n.partition(",")[0], "") for n in heads},
        "unedited": _cells(first.record.baseline, heads),
        "rows": [
            (place, run, _apart(run, runs), _cells([*run.record.numbers, *costs(run)], heads))
            for place, run in group
        ],
    }


def _cells(rows: Sequence[Number], names: Iterable[str]) -> list[Entry | None]:
    found = [_of(rows, name) for name in names]
    return [entry(row) if row and not math.isnan(row.value) else None for row in found]


def _sets(run: Material) -> str:
    """Return all that runs must share to stand in one table."""
    fields = ("kind", "names", "model", "seed", "forget", "retain", "validation", "test")
    shared = [getattr(run.record, name) for name in (*fields, "questions")]
    tested = {name: run.record.files.get(name) for name in ("validation", "test", "outside")}
    return repr((shared, tested))


def _apart(run: Material, group: Sequence[Material]) -> str:
    """Return the preset, or the settings that tell a run from those of the same method."""
    preset = f"preset {run.record.preset}" if run.record.preset else ""
    return apart(run, [r for r in group if r.title == run.title]) or preset


def _of(rows: Sequence[Number], name: str) -> Number | None:
    return next((row for row in rows if row.name == name), None)


def changes(run: Material) -> list[tuple[Number, Number]]:
    """Return what is left, and what is kept: before and after."""
    sort, nothing = SORTS[run.kind], Number("", math.nan)
    return [
        (_of(run.record.baseline, name) or nothing, _of(run.record.numbers, name) or nothing)
        for name in (sort.columns[0], sort.kept)
    ]


def model(run: Material) -> str:
    """Return the model that was taught, as a sentence names it."""
    name = run.record.model.name
    family = SORTS[run.kind].family
    return f"the world's {family}" if name == "world" else name or family
