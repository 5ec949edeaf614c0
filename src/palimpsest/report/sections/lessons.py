"""A CLIP or a LLaVA that was made to forget names: what went, in words and side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from palimpsest.methods import Number
from palimpsest.report.load import Material
from palimpsest.report.prose import with_interval
from palimpsest.report.sections.table import Entry, entry

MUCH = 0.2
"""Who loses more than this share of everything else has forgotten too much."""


@dataclass(frozen=True)
class Sort:
    """How runs of one kind are told."""

    family: str
    columns: tuple[str, ...]
    """The numbers to compare runs by: first what is left, and then what is kept."""
    kept: str

    @property
    def left(self) -> str:
        """The number that says what is left of the names."""
        return self.columns[0]


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

COSTS = (("Training time", "s"), ("Peak memory", "MB"), ("Patch", "kB"))


def headline(run: Material) -> str:
    """What happened, in one line."""
    left, kept = _changes(run)
    forgot = 1 - left[1].value / left[0].value if left[0].value else math.nan
    if math.isnan(forgot):
        return f"{run.title} and {run.names}"
    did = "made" if forgot >= 0.3 else "did not make"
    said = f"{run.title} {did} {_model(run)} forget {run.names}"
    said += " in part" if 0.3 <= forgot < 0.8 else ""
    lost = kept[0].value - kept[1].value
    return said + (", and much else with it" if lost > MUCH * kept[0].value else "")


def verdict(run: Material) -> list[Markup]:
    """What is left of the names, what is kept of the rest, and what it took."""
    left, kept = _changes(run)
    told = Markup(
        "Of {} pictures of <em>{}</em> {} still names <b>{}</b>, before {}. "
        "Of {} pictures of everything else it names <b>{}</b> right, before {}."
    ).format(
        left[1].n or "the",
        run.names,
        _model(run),
        _share(left[1]),
        _share(left[0]),
        kept[1].n or "the",
        _share(kept[1]),
        _share(kept[0]),
    )
    layer = run.record.search.get("layer")
    moved = Markup("One matrix moves, <em>{}</em>.").format(layer) if layer else Markup("")
    short = run.record.short
    fell = Markup("The search fell short: {}.").format(short) if short else Markup("")
    return [paragraph for paragraph in (told, moved, fell) if paragraph]


def compared(runs: Sequence[tuple[str, Material]]) -> list[dict[str, Any]]:
    """A table for all runs over the same sets: the unedited model, then a row each.

    Args:
        runs: each with the place of its section on the page.
    """
    groups: dict[str, list[tuple[str, Material]]] = {}
    for place, run in runs:
        groups.setdefault(_sets(run), []).append((place, run))
    return [_table(group) for group in groups.values()]


def _table(group: Sequence[tuple[str, Material]]) -> dict[str, Any]:
    first = group[0][1]
    sort = SORTS[first.kind]
    columns = [
        name for name in sort.columns if any(_of(run.record.numbers, name) for _, run in group)
    ]
    unedited = [_entry(_of(first.record.baseline, name)) for name in columns]
    found = [_of(first.record.numbers, name) for name in columns]
    specs = dict.fromkeys(row.spec for row in found if row)
    rows = [{"id": "", "method": "unedited", "note": "", "cells": [*unedited, None, None, None]}]
    for place, run in group:
        cells = [_entry(_of(run.record.numbers, name)) for name in columns]
        rows.append(
            {
                "id": place,
                "method": run.title,
                "note": _apart(run, [other for _, other in group]),
                "cells": [*cells, *_costs(run)],
            }
        )
    return {
        "title": f"{first.names} in {_model(first)}",
        "note": "; ".join(filter(None, specs)),
        "heads": [*((name, "") for name in columns), *COSTS],
        "rows": rows,
    }


def _sets(run: Material) -> str:
    """All that runs must share to stand in one table."""
    fields = ("kind", "names", "model", "seed", "forget", "retain", "validation", "test")
    shared = [getattr(run.record, name) for name in (*fields, "questions")]
    tested = {name: run.record.files.get(name) for name in ("validation", "test", "outside")}
    return repr((shared, tested))


def _apart(run: Material, group: Sequence[Material]) -> str:
    """The preset, or the settings that tell a run from those of the same method."""
    same = [r.record.arguments for r in group if r.title == run.title]
    own = run.record.arguments
    differ = [name for name, v in own.items() if any(a.get(name) != v for a in same)]
    told = ", ".join(f"{name} {own[name]}" for name in differ)
    preset = run.record.preset
    return told or (f"preset {preset}" if preset else "")


def _costs(run: Material) -> list[Entry | None]:
    record = run.record
    size = (record.patch_bytes or 0) / 1000 or None
    found = (record.seconds.get("train"), record.peak_memory_mb, size)
    rows = [Number(name, v or math.nan, unit=u) for v, (name, u) in zip(found, COSTS, strict=True)]
    return [_entry(row) for row in rows]


def _of(rows: Sequence[Number], name: str) -> Number | None:
    return next((row for row in rows if row.name == name), None)


def _changes(run: Material) -> list[tuple[Number, Number]]:
    """What is left, and what is kept: before and after."""
    sort, nothing = SORTS[run.kind], Number("", math.nan)
    return [
        (_of(run.record.baseline, name) or nothing, _of(run.record.numbers, name) or nothing)
        for name in (sort.left, sort.kept)
    ]


def _share(row: Number) -> str:
    return "–" if math.isnan(row.value) else with_interval(row)


def _model(run: Material) -> str:
    name = run.record.model.name
    family = SORTS[run.kind].family
    return f"the world's {family}" if name == "world" else name or family


def _entry(row: Number | None) -> Entry | None:
    return None if row is None or math.isnan(row.value) else entry(row)
