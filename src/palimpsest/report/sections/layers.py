"""SLUG's layers as a plot that a person can hover over, and what the search gave on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from palimpsest.core.typed import build
from palimpsest.report.charts import GREY, Axis, Dot, Key, Look, scatter
from palimpsest.report.prose import percent
from palimpsest.toolbox.layer_search import Layer, Trial

TOWERS = {"text": Look(1, "circle", ""), "vision": Look(2, "square", "")}
"""How a tower's layers look."""
OTHER, MOVED = Look(GREY, "circle", ""), 1.8
ALIGNMENT = Axis(Markup("alignment |cos(∇L<sub>f</sub>, ∇L<sub>r</sub>)|"))
IMPORTANCE = Axis(Markup("importance ‖∇L<sub>f</sub>‖/‖θ‖"), log=True)


@dataclass(frozen=True)
class Search:
    """What is told of a search; one of another form is not told."""

    layers: tuple[Layer, ...] = ()
    trials: tuple[Trial, ...] = ()
    layer: str = ""
    block: str = ""
    rule: str = ""


def _read(search: dict[str, Any]) -> Search:
    try:
        return build(Search, search)
    except TypeError:
        return Search()


def layers(search: dict[str, Any]) -> dict[str, Any] | None:
    """Importance against alignment of every layer, and what the search gave on each.

    The front of each tower is filled and linked, the layer that moved is ringed. Of the trials the
    winner comes first.

    Args:
        search: a record's layers and trials; None comes of a record without, or with what no
            layer has, an importance below 0.
    """
    found = _read(search)
    if not found.layers or any(row.importance < 0 for row in found.layers):
        return None
    by_tower = {t: [row for row in found.layers if row.tower == t] for t in TOWERS}
    dots = {t: [_dot(row, found) for row in rows] for t, rows in by_tower.items() if rows}
    keys = [Key(f"{tower} tower", TOWERS[tower]) for tower in dots]
    keys += [Key("not on its tower's front", OTHER, hollow=True), Key("moved", OTHER, ringed=True)]
    plot = scatter(
        [dot for some in dots.values() for dot in some],
        title="Layers by importance and alignment",
        x=ALIGNMENT,
        y=IMPORTANCE,
        fronts=[_front(some) for some in dots.values()],
        keys=keys,
        named=False,
    )
    return {"plot": plot, "best": next_best(search), "rule": found.rule}


def next_best(search: dict[str, Any], n: int | None = None) -> list[dict[str, Any]]:
    """Return the best trial of each layer, the winner first: what the others would have given."""
    found: dict[str, dict[str, Any]] = {}
    for trial in sorted(_read(search).trials, key=lambda t: (t.forget, -t.keep, t.scale)):
        found.setdefault(trial.layer, {**vars(trial)})
    return list(found.values())[:n]


def _front(dots: Sequence[Dot]) -> list[Dot]:
    return sorted((dot for dot in dots if not dot.hollow), key=lambda dot: dot.x)


def _dot(row: Layer, search: Search) -> Dot:
    moved = _of(row.name, search.layer or search.block)
    return Dot(
        row.alignment,
        row.importance,
        row.name,
        TOWERS[row.tower],
        size=MOVED if moved else 1.0,
        hollow=not row.front,
        ringed=moved,
        told=_told(row, search.trials),
    )


def _told(row: Layer, trials: Sequence[Trial]) -> str:
    """Return what a person reads over a layer: its two figures and every λ that was tried there."""
    own = sorted((t for t in trials if _of(row.name, t.layer)), key=lambda t: t.scale)
    lines = [
        f"λ {t.scale:.3g}: {percent(t.forget)} left, {percent(t.keep)} of the others kept"
        for t in own
    ]
    figures = f"importance {row.importance:.3g} · alignment {row.alignment:.3g}"
    return "\n".join([figures, *lines])


def _of(name: str, moved: str) -> bool:
    """Return whether a weight moves with a layer or a block: queries, keys, values, or an MLP."""
    return name == moved or (name.startswith(f"{moved}.") and ".out_proj." not in name)
