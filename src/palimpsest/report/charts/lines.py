"""Lines over an axis, with their intervals: relearning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palimpsest.report.charts.axes import Axis, Scale, written
from palimpsest.report.charts.figure import (
    DASHES,
    GREY,
    LINE,
    Key,
    Look,
    at,
    drawn,
    grid,
    mark,
    tag,
    values,
)


@dataclass(frozen=True)
class Point:
    """One measured point."""

    x: float
    y: float
    low: float = math.nan
    """Lower end of its interval; none if NaN."""
    high: float = math.nan
    told: str = ""
    """What hovering tells, a line each; its numbers if empty."""


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    points: Sequence[Point]
    look: Look = LINE


@dataclass(frozen=True)
class Level:
    """A value that the lines are read against, the same everywhere."""

    label: str
    y: float
    told: str = ""


def lines(
    series: Sequence[Series], *, title: str, x: Axis, y: Axis, levels: Sequence[Level] = ()
) -> Markup:
    """Return lines with the bands of their intervals, a legend, and the values as a table.

    Args:
        series: the lines, in the order of the legend.
        title: what is shown, for who does not see it.
        x: the horizontal axis.
        y: the vertical one.
        levels: what the lines are read against.
    """
    points = [p for one in series for p in one.points]
    across = x.over(p.x for p in points)
    ends = [v for p in points for v in (p.y, p.low, p.high)]
    up = y.over([*ends, *(level.y for level in levels)])
    keys = [Key(one.label, one.look) for one in series]
    keys += [Key(level.label, Look(GREY, "", "dot")) for level in levels]
    shown = drawn(
        title,
        _summary(series, up),
        across,
        up,
        grid(across, up, upright=False),
        *(_level(level, up) for level in levels),
        _paths(series, across, up),
        *(_marks(one, across, up) for one in series),
        keys=keys,
    )
    return tag("figure", shown, _table(series, title, x, y), class_="chart")


def _summary(series: Sequence[Series], up: Scale) -> str:
    """Return where each line begins and ends."""
    told = []
    for one in series:
        ends = [written(float(f"{p.y:.3g}"), up.axis.unit) for p in one.points]
        told += [f"{one.label}: from {ends[0]} to {ends[-1]}."] if ends else []
    return " ".join(told)


def _paths(series: Sequence[Series], across: Scale, up: Scale) -> Markup:
    """Return bands and lines in thousandths of the plane, which is stretched to its size."""
    parts = []
    for one in series:
        sure = [p for p in one.points if not math.isnan(p.low + p.high)]
        rim = [(p.x, p.high) for p in sure] + [(p.x, p.low) for p in reversed(sure)]
        hue, dash = f"hue-{one.look.hue}", DASHES[one.look.dash] or None
        if len(sure) > 1:
            parts.append(tag("polygon", points=_thousandths(rim, across, up), class_=f"band {hue}"))
        way = _thousandths([(p.x, p.y) for p in one.points], across, up)
        parts.append(tag("polyline", points=way, class_=hue, stroke_dasharray=dash))
    box = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none"}
    return tag("svg", *parts, **box, width="100%", height="100%")


def _thousandths(places: Sequence[tuple[float, float]], across: Scale, up: Scale) -> str:
    return " ".join(
        f"{10 * across.place(x):.5g},{1000 - 10 * up.place(y):.5g}"
        for x, y in places
        if math.isfinite(x + y)
    )


def _marks(one: Series, across: Scale, up: Scale) -> Markup:
    found = []
    for p in one.points:
        if not math.isfinite(p.x + p.y):
            continue
        own = p.told or _numbers(p, up.axis)
        place = across.place(p.x), up.place(p.y)
        if len(one.points) == 1 and not math.isnan(p.low + p.high):  # no band shows it
            ends = [f"{100 - up.place(v):g}%" for v in (p.low, p.high)]
            at_x = f"{place[0]:g}%"
            whisker = tag("line", x1=at_x, x2=at_x, y1=ends[0], y2=ends[1])
            found.append(tag("g", whisker, class_=f"whisker hue-{one.look.hue}"))
        found.append(at(*place, mark(one.look, told=f"{one.label}\n{own}")))
    return tag("g", *found)


def _level(level: Level, up: Scale) -> Markup:
    to = f"{100 - up.place(level.y):g}%"
    dash, told = DASHES["dot"], level.told or written(level.y, up.axis.unit)
    title = tag("title", f"{level.label}\n{told}")
    return tag(
        "line", title, x1=0, x2="100%", y1=to, y2=to, class_="level hue-0", stroke_dasharray=dash
    )


def _numbers(p: Point, axis: Axis) -> str:
    between = "" if math.isnan(p.low + p.high) else f" [{p.low:.3g}, {p.high:.3g}]"
    return f"{written(float(f'{p.y:.3g}'), axis.unit)}{between}"


def _table(series: Sequence[Series], title: str, x: Axis, y: Axis) -> Markup:
    """Return a row for every place on the horizontal axis, with a column for each line."""
    told = [{p.x: p.told or _numbers(p, y) for p in one.points} for one in series]
    places = sorted({place for one in told for place in one})
    rows = (
        [written(place, x.unit), *(one.get(place, "–").replace("\n", " · ") for one in told)]
        for place in places
    )
    return values(title, [Markup(x.title).striptags(), *(one.label for one in series)], rows)
