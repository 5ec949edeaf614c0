"""SLUG's layers as a plot that a person can hover over, and what the search gave on each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from palimpsest.core.typed import build
from palimpsest.report.prose import percent
from palimpsest.report.sections.figures import GREY, LOOK
from palimpsest.toolbox.layer_search import Layer, Trial

TOWERS = {"text": "#3f83c4", "vision": "#c8553d"}
"""Tower → colour, readable on light and dark."""
ROUND = [digit * 10.0**power for power in range(-9, 3) for digit in (1, 2, 5)]
TICKS = {"tickvals": ROUND, "ticktext": [f"{v:g}" for v in ROUND], "automargin": True}


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
    """Importance against alignment of every layer, as plain JSON with its legend.

    The front of each tower is filled and linked, the layer that moved is ringed. With it comes
    what the search gave on each layer, the winner first.

    Args:
        search: a record's layers and trials; None comes of a record without.
    """
    found = _read(search)
    if not found.layers:
        return None
    figure, legend = go.Figure(layout=LOOK), []
    moved = found.layer or found.block
    for tower, colour in TOWERS.items():
        rows = [row for row in found.layers if row.tower == tower]
        if rows:
            figure.add_trace(_front(rows, colour))
            figure.add_trace(_dots(rows, colour, moved, found.trials))
            legend.append((f"{tower} tower", colour, "", "●"))
    legend.append(("not on its tower's front", GREY, "", "○"))
    legend.append(("moved", GREY, "", "◎"))
    figure.update_xaxes(title_text="alignment |cos(∇L<sub>f</sub>, ∇L<sub>r</sub>)|")
    figure.update_yaxes(title_text="importance ‖∇L<sub>f</sub>‖/‖θ‖", type="log", **TICKS)
    shown = {**json.loads(str(figure.to_json())), "legend": legend}
    return shown | {"best": next_best(search), "rule": found.rule}


def next_best(search: dict[str, Any], n: int | None = None) -> list[dict[str, Any]]:
    """Return the best trial of each layer, the winner first: what the others would have given."""
    found: dict[str, dict[str, Any]] = {}
    for trial in sorted(_read(search).trials, key=lambda t: (t.forget, -t.keep, t.scale)):
        found.setdefault(trial.layer, {**vars(trial)})
    return list(found.values())[:n]


def _front(rows: Sequence[Layer], colour: str) -> go.Scatter:
    front = sorted((row for row in rows if row.front), key=lambda row: row.alignment)
    return go.Scatter(
        x=[row.alignment for row in front],
        y=[row.importance for row in front],
        mode="lines",
        line={"color": colour, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )


def _dots(rows: Sequence[Layer], colour: str, moved: str, trials: Sequence[Trial]) -> go.Scatter:
    won = [_of(row.name, moved) for row in rows]
    return go.Scatter(
        x=[row.alignment for row in rows],
        y=[row.importance for row in rows],
        mode="markers",
        marker={
            "color": colour,
            "size": [17 if w else 9 for w in won],
            "opacity": 1,
            "symbol": ["circle" if row.front else "circle-open" for row in rows],
            "line": {"width": [3 if w else 1 for w in won], "color": GREY},
        },
        customdata=[_told(row, trials) for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
        hoverlabel={"bgcolor": colour},
    )


def _told(row: Layer, trials: Sequence[Trial]) -> str:
    """Return what a person reads over a layer: its two figures and every λ that was tried there."""
    lines = [
        f"<b>{row.name}</b>",
        f"importance {row.importance:.3g} · alignment {row.alignment:.3g}",
    ]
    own = sorted((t for t in trials if _of(row.name, t.layer)), key=lambda t: t.scale)
    lines += [
        f"λ {t.scale:.3g}: {percent(t.forget)} left, {percent(t.keep)} of the others kept"
        for t in own
    ]
    return "<br>".join(lines)


def _of(name: str, moved: str) -> bool:
    """Return whether a weight moves with a layer or a block: queries, keys, values, or an MLP."""
    return name == moved or (name.startswith(f"{moved}.") and ".out_proj." not in name)
