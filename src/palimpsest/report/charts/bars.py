"""A bar a line, each with its interval and the value that it is read against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palimpsest.report.charts.axes import Axis, written
from palimpsest.report.charts.figure import DOT, Key, Look, legend, tag


@dataclass(frozen=True)
class Bar:
    """One line."""

    label: str
    value: float
    low: float = math.nan
    """Lower end of its interval; none if NaN."""
    high: float = math.nan
    before: float = math.nan
    """A value to read it against, such as the unedited model's; none if NaN."""
    note: str = ""
    """Small print behind its label."""
    look: Look = DOT
    text: str = ""
    """What stands for its value; the numbers if empty."""


def bars(
    rows: Sequence[Bar],
    *,
    title: str,
    axis: Axis | None = None,
    before: str = "before",
    keys: Sequence[Key] = (),
) -> Markup:
    """Return a list of bars, whose values are its text.

    Args:
        rows: from top to bottom.
        title: what is shown.
        axis: what the bars are measured by; from 0 to 100 % if None.
        before: what `Bar.before` is, in words.
        keys: the legend.
    """
    axis = axis or Axis(low=0, high=100, unit="%")
    scale = axis.over([v for b in rows for v in (b.value, b.low, b.high, b.before)] + [0.0])
    items = []
    for bar in rows:
        name = tag("span", bar.label, tag("small", bar.note) if bar.note else "", class_="what")
        said = tag("span", bar.text or _said(bar, axis.unit), class_="value")
        told = ""
        if not math.isnan(bar.before):
            told = tag("span", f", {before} {_rounded(bar.before, axis.unit)}", class_="unseen")
        ends = [v if math.isnan(v) else scale.place(v) for v in (bar.value, bar.low, bar.high)]
        drawing = _drawn(bar, ends, scale.place(bar.before) if told else None, scale.place(0.0))
        items.append(tag("li", name, said, told, drawing))
    shown = tag("ul", *items, role="list", aria_label=title)
    if any(not math.isnan(bar.before) for bar in rows):
        line = tag("line", x1="50%", x2="50%", y1=2, y2=16, class_="before")
        sample = tag("svg", line, width=10, height=18, aria_hidden="true")
        keys_shown = tag("ul", tag("li", sample, before), class_="keys")
    else:
        keys_shown = Markup()
    return tag("figure", legend(keys), keys_shown, shown, class_="chart bars")


def _rounded(value: float, unit: str) -> str:
    return written(float(f"{value:.3g}"), unit)


def _said(bar: Bar, unit: str) -> Markup:
    if math.isnan(bar.value):
        return Markup("–")
    between = "" if math.isnan(bar.low + bar.high) else f"[{bar.low:.3g}, {bar.high:.3g}]"
    return Markup("{} {}").format(_rounded(bar.value, unit), tag("small", between))


def _drawn(bar: Bar, ends: Sequence[float], before: float | None, zero: float) -> Markup:
    """Return the bar from 0 to its value, its interval, and a line where it was before."""
    value, low, high = ends
    parts = [tag("rect", x=0, width="100%", y=5, height=6, rx=3, class_="track")]
    title = tag("title", f"{bar.label}\n{_said(bar, '').striptags()}")
    if not math.isnan(value):
        first, last = sorted((zero, value))
        parts.append(
            tag("rect", title, x=f"{first:g}%", width=f"{last - first:g}%", y=5, height=6, rx=3)
        )
    if not math.isnan(low + high):
        parts.append(tag("line", x1=f"{low:g}%", x2=f"{high:g}%", y1=8, y2=8, class_="whisker"))
    if before is not None:
        parts.append(
            tag("line", x1=f"{before:g}%", x2=f"{before:g}%", y1=1, y2=15, class_="before")
        )
    hue = f"hue-{bar.look.hue}"
    return tag("svg", *parts, width="100%", height=16, aria_hidden="true", class_=hue)
