"""Dots between two axes, with whiskers, names, and lines through those that no other beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from palimpsest.report.charts.axes import Axis, Scale, written
from palimpsest.report.charts.figure import (
    DOT,
    HEIGHT,
    Key,
    Look,
    at,
    drawn,
    grid,
    mark,
    tag,
    values,
)

NARROW, WIDE = 270, 620
"""Widths of a plane in pixels for which names find their places."""
LETTER, LINE, GAP = 6.7, 15, 9
"""A letter's width, a line's height, and a name's distance from its dot, in pixels."""


@dataclass(frozen=True)
class Dot:
    """One thing measured in two ways."""

    x: float
    y: float
    label: str = ""
    """Its name, written beside it where there is room; it heads what hovering tells."""
    look: Look = DOT
    x_low: float = math.nan
    """Lower end of the interval along x; none if NaN."""
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan
    size: float = 1.0
    """Width of its mark, for a third number; 1 is that of a line's marks."""
    hollow: bool = False
    ringed: bool = False
    told: str = ""
    """What hovering tells besides, a line each; its numbers if empty."""


def front(dots: Sequence[Dot]) -> list[Dot]:
    """Return the dots that no other beats in both ways, high being good, from the left."""
    found, best = [], -math.inf
    for dot in sorted(dots, key=lambda d: (-d.x, -d.y)):
        if dot.y > best:
            best = dot.y
            found.append(dot)
    return found[::-1]


def scatter(
    dots: Sequence[Dot],
    *,
    title: str,
    x: Axis,
    y: Axis,
    fronts: Sequence[Sequence[Dot]] = (),
    keys: Sequence[Key] = (),
    named: bool = True,
) -> Markup:
    """Return dots with their whiskers, names where they fit, and the values as a table.

    Args:
        dots: later ones lie above earlier ones.
        title: what is shown, for who does not see it.
        x: the horizontal axis.
        y: the vertical one.
        fronts: dots to link, each from left to right.
        keys: the legend.
        named: whether names stand beside the dots; hovering tells them anyway.
    """
    across = x.over(v for d in dots for v in (d.x, d.x_low, d.x_high))
    up = y.over(v for d in dots for v in (d.y, d.y_low, d.y_high))
    every, dots = dots, [d for d in dots if math.isfinite(d.x + d.y)]
    places = [(across.place(d.x), up.place(d.y)) for d in dots]
    shown = drawn(
        title,
        f"{len(dots)} points.",
        across,
        up,
        grid(across, up),
        *(_front(some, across, up) for some in fronts),
        *(_whiskers(dot, across, up) for dot in dots),
        *(at(*place, _mark(dot, x, y)) for dot, place in zip(dots, places, strict=True)),
        *(_names(dots, places) if named else ()),
        keys=keys,
    )
    head = ["name", *(Markup(axis.title).striptags() for axis in (x, y))]
    told = any(dot.told for dot in every)
    rows = ([d.label, *_numbers(d, x, y), *([_line(d.told)] if told else [])] for d in every)
    return tag("figure", shown, values(title, [*head, *["details"] * told], rows), class_="chart")


def _line(told: str) -> str:
    return told.replace("\n", " · ")


def _mark(dot: Dot, x: Axis, y: Axis) -> Markup:
    told = dot.told or "\n".join(
        f"{Markup(axis.title).striptags()} {number}".strip()
        for axis, number in zip((x, y), _numbers(dot, x, y), strict=True)
    )
    name = f"{dot.label}\n" if dot.label else ""
    return mark(dot.look, told=name + told, hollow=dot.hollow, ringed=dot.ringed, size=dot.size)


def _numbers(dot: Dot, x: Axis, y: Axis) -> list[str]:
    ends = (dot.x, dot.x_low, dot.x_high, x.unit), (dot.y, dot.y_low, dot.y_high, y.unit)
    return [
        written(float(f"{value:.3g}"), unit)
        + ("" if math.isnan(low + high) else f" [{low:.3g}, {high:.3g}]")
        for value, low, high, unit in ends
    ]


def _front(some: Sequence[Dot], across: Scale, up: Scale) -> Markup:
    """Return dotted lines from each dot to the next."""
    ends = [(f"{across.place(d.x):g}%", f"{100 - up.place(d.y):g}%") for d in some]
    hue = some[0].look.hue if some else 0
    links = (tag("line", x1=a, y1=b, x2=c, y2=d) for (a, b), (c, d) in pairwise(ends))
    return tag("g", *links, class_=f"front hue-{hue}")


def _whiskers(dot: Dot, across: Scale, up: Scale) -> Markup:
    x, y = f"{across.place(dot.x):g}%", f"{100 - up.place(dot.y):g}%"
    found = []
    if not math.isnan(dot.x_low + dot.x_high):
        ends = [f"{across.place(v):g}%" for v in (dot.x_low, dot.x_high)]
        found.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y))
    if not math.isnan(dot.y_low + dot.y_high):
        ends = [f"{100 - up.place(v):g}%" for v in (dot.y_low, dot.y_high)]
        found.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1]))
    return tag("g", *found, class_=f"whisker hue-{dot.look.hue}") if found else Markup()


Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
SIDES = (("start", 1, 0), ("end", -1, 0), ("middle", 0, -1), ("middle", 0, 1))
"""Where a name may stand: its anchor, and in which direction from its dot."""


def _names(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """Return the names that have room even on a phone, and those that need a wider plane."""
    found: list[Markup] = []
    left = [i for i, dot in enumerate(dots) if dot.label]
    settled: dict[int, int] = {}
    for width, sort in ((NARROW, "name"), (WIDE, "name wide")):
        middles = [(width * x / 100, HEIGHT * (1 - y / 100)) for x, y in places]
        taken = [
            _box(m, 0, 0, 0, 2 * GAP * max(d.size, 0.7)) for m, d in zip(middles, dots, strict=True)
        ]
        taken += [_beside(dots[i], middles[i], side) for i, side in settled.items()]
        for i in list(left):
            free = (
                s for s in range(len(SIDES)) if _fits(_beside(dots[i], middles[i], s), taken, width)
            )
            side = next(free, None)
            if side is not None:
                settled[i] = side
                left.remove(i)
                taken.append(_beside(dots[i], middles[i], side))
                found.append(_name(dots[i], places[i], side, sort))
    return found


def _name(dot: Dot, place: tuple[float, float], side: int, sort: str) -> Markup:
    anchor, right, down = SIDES[side]
    reach = GAP * max(dot.size, 0.7)
    dx, dy = right * reach, down * (reach + LINE / 2)
    text = tag("text", dot.label, x=f"{dx:g}", y=f"{dy:g}", dy="0.34em", text_anchor=anchor)
    return at(*place, tag("g", text, class_=sort))


def _beside(dot: Dot, middle: tuple[float, float], side: int) -> Box:
    """Return the room that a dot's name takes on one of its sides."""
    _, right, down = SIDES[side]
    wide, reach = LETTER * len(dot.label), GAP * max(dot.size, 0.7)
    return _box(middle, right * (reach + wide / 2), down * (reach + LINE / 2), wide, LINE)


def _box(middle: tuple[float, float], dx: float, dy: float, wide: float, high: float) -> Box:
    x, y, wide = middle[0] + dx, middle[1] + dy, wide or high
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _fits(box: Box, taken: Sequence[Box], width: float) -> bool:
    """Return whether a box lies within the plane and meets no other by more than a hair."""
    if box[0] < 0 or box[2] > width + 12 or box[1] < -6 or box[3] > HEIGHT:
        return False
    return all(
        box[2] - 1 <= other[0]
        or other[2] <= box[0] + 1
        or box[3] <= other[1] + 1
        or other[3] - 1 <= box[1]
        for other in taken
    )
