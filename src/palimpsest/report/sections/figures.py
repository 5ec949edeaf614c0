"""The relearning curve."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from palimpsest.core.files import beside
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.prose import ARMS, interval, percent

GREY = "#858b94"
"""Readable on a light and on a dark page; the page's style sheet refines it."""
LOOKS = {
    "erased": ("#c8553d", "circle"),
    "gold": ("#b98a1d", "diamond"),
    "unedited": ("#3f83c4", "square"),
}
"""Whose curve it is, by colour and by marker; the colours pass on light and dark."""
DASHES = ("solid", "dash", "dashdot", "longdash", "dot")
"""Which recovery it is."""

LOOK = json.loads(beside(__file__, "layout.json"))
"""How figures look; the page writes their legends, which wrap on narrow screens."""
SIGNS = {"circle": "●", "square": "■", "diamond": "◆"}


def curve_label(run: Material, section: Section, on: str) -> str:
    """Return which recovery, from which pictures, on which model."""
    arm = run.record.arm
    pictures = f", {ARMS.get(arm, arm)}" if arm else ""
    erased = section.erasure.title if section.erasure and run.record.subject else None
    known = "gold, which never knew it" if on == "gold" else erased or "the unedited model"
    return f"{run.title}{pictures}, on {known}"


def curve(section: Section) -> dict[str, Any] | None:
    """Return the figure's data and layout as JSON with its legend; None if no run has a curve."""
    attempts = [(run, on) for run, _, on in section.attempts if run.curve]
    if not attempts:
        return None
    figure = go.Figure(layout=LOOK)
    legend = []
    kinds = list(dict.fromkeys(_kind(run) for run, _ in attempts))
    for run, on in attempts:
        dash = DASHES[kinds.index(_kind(run)) % len(DASHES)]
        colour, symbol = LOOKS[on]
        figure.add_trace(_band(run.curve, colour))
        figure.add_trace(_line(run.curve, colour, dash, symbol))
        legend.append((curve_label(run, section, on), colour, dash, SIGNS[symbol]))
    steps = max(p.evaluations for run, _ in attempts for p in run.curve)
    base = section.original.shown(section.target) if section.original else None
    if base and base.n:
        figure.add_trace(_base([0, max(steps, 1)], base.value, base.n))
        legend.append(("the unedited model, before anything", GREY, "dot", ""))
    figure.update_xaxes(title_text="gradient evaluations of the recovery", showgrid=False)
    figure.update_yaxes(ticksuffix="%", range=[-3, 103], dtick=25)
    return {**json.loads(str(figure.to_json())), "legend": legend}


def _kind(run: Material) -> str:
    """Return what tells one recovery from another, whomever it is of."""
    return json.dumps([run.record.method, run.record.arguments], sort_keys=True)


def _band(points: Sequence[CurvePoint], colour: str) -> go.Scatter:
    """Return the 95 % interval around the line, over the gradient evaluations of all recoveries."""
    sure = [p for p in points if not math.isnan(p.rate.low + p.rate.high)]
    x = [p.evaluations for p in sure]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=x + x[::-1],
        y=[100 * p.rate.high for p in sure] + [100 * p.rate.low for p in sure[::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def _line(points: Sequence[CurvePoint], colour: str, dash: str, symbol: str) -> go.Scatter:
    said = [
        f"<b>{percent(p.rate.value)}</b> {interval(p.rate.low, p.rate.high)}"
        f"<br>step {p.step} · n = {p.rate.n}"
        for p in points
    ]
    return go.Scatter(
        x=[p.evaluations for p in points],
        y=[100 * p.rate.value for p in points],
        mode="lines+markers",
        line={"color": colour, "width": 2.5, "dash": dash},
        marker={"size": 8, "symbol": symbol},
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        hoverlabel={"bgcolor": colour},
    )


def _base(ends: list[int], share: float, n: int) -> go.Scatter:
    return go.Scatter(
        x=ends,
        y=[100 * share] * 2,
        mode="lines",
        line={"color": GREY, "width": 2, "dash": "dot"},
        hovertemplate=f"<b>{percent(share)}</b> unedited model<br>n = {n}<extra></extra>",
        hoverlabel={"bgcolor": GREY},
    )
