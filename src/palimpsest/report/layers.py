"""SLUG's layers as a plot that a person can hover over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from palimpsest.report.figures import GREY
from palimpsest.runs import write_text

TOWERS = {"text": "#3f83c4", "vision": "#c8553d"}
"""Tower → colour, readable on light and dark."""


def write_layers(search: dict[str, Any], out: Path) -> Path:
    """Write one HTML page that needs no network: importance against alignment of every layer.

    Args:
        search: a record's layers and trials.
        out: the file to write.
    """
    write_text(out, layers_figure(search).to_html(include_plotlyjs=True, full_html=True))
    return out


def layers_figure(search: dict[str, Any]) -> go.Figure:
    """Every layer by tower; those of the Pareto front are filled, the chosen one is ringed."""
    figure = go.Figure()
    chosen = search.get("layer") or search.get("block") or ""
    for tower, colour in TOWERS.items():
        rows = [row for row in search["layers"] if row["tower"] == tower]
        if not rows:
            continue
        won = [bool(chosen) and row["name"].startswith(chosen) for row in rows]
        figure.add_trace(
            go.Scatter(
                x=[row["alignment"] for row in rows],
                y=[row["importance"] for row in rows],
                mode="markers",
                name=tower,
                marker={
                    "color": colour,
                    "size": [15 if w else 9 for w in won],
                    "symbol": ["circle" if row["front"] else "circle-open" for row in rows],
                    "line": {"width": [3 if w else 1 for w in won], "color": GREY},
                },
                customdata=[_told(row, search.get("trials", [])) for row in rows],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "family": "system-ui, sans-serif"},
        title="Layers by importance and alignment (filled: the Pareto front of a tower)",
        xaxis={"title": "alignment |cos(∇L_f, ∇L_r)|"},
        yaxis={"title": "importance ‖∇L_f‖/‖θ‖", "type": "log"},
    )
    return figure


def _told(row: dict[str, Any], trials: list[dict[str, Any]]) -> str:
    """What a person reads over a layer: its two figures and the best that was tried there."""
    lines = [
        f"<b>{row['name']}</b>",
        f"importance {row['importance']:.3g} · alignment {row['alignment']:.3g}",
    ]
    own = [t for t in trials if row["name"].startswith(t["layer"])]
    if own:
        best = min(own, key=lambda t: (t["forget"], -t["keep"], t["scale"]))
        left, kept = (f"{100 * best[key]:.0f} %" for key in ("forget", "keep"))
        lines.append(f"λ {best['scale']:.3g}: {left} left, {kept} of the others kept")
    return "<br>".join(lines)
