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
WIDTHS = (NARROW, WIDE, 900, 1200)
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
Spot = tuple[float, float]
"""Where a name begins, ends (to the left) or has its middle (0), in pixels from its dot."""
AWAY: list[Spot] = sorted(
    ((dx, dy) for dx in range(-60, 61, 20) for dy in range(-75, 76, LINE) if dx),
    key=lambda spot: math.hypot(*spot),
)
"""Where a line leads to a name that has no room beside its dot, the nearest first."""


def _names(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """Return the names that have room even on a phone, and those that need a wider plane.

    Dots that lie upon each other share a name; one among others has it at a line's end.
    """
    found: list[Markup] = []
    labels = _together(dots, places)
    left = [i for i, label in enumerate(labels) if label]
    taken = {
        w: [_box(*_pixels(p, w), *2 * [2 * _reach(d)]) for d, p in zip(dots, places, strict=True)]
        for w in WIDTHS
    }

    def free(i: int, spot: Spot, width: int, led: bool) -> bool:
        name, *line = _rooms(labels[i], places[i], width, spot, led)
        names = taken[width][len(dots) :]
        return _fits(name, taken[width], width) and all(_fits(box, names, width) for box in line)

    for widths, led in (((NARROW,), False), ((WIDE,), False), (WIDTHS[1:], True)):
        sort = "name" if NARROW in widths else "name wide"
        for i in list(left):
            spots = AWAY if led else _beside(dots[i])
            if spot := next((s for s in spots if all(free(i, s, w, led) for w in widths)), None):
                left.remove(i)
                for width in WIDTHS:
                    taken[width] += _rooms(labels[i], places[i], width, spot, led)
                found.append(at(*places[i], _name(labels[i], spot, led, sort)))
    return found


def _together(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> list[str]:
    """Return the names of the dots: those that lie upon each other have all theirs at the first."""
    heaps: dict[int, list[str]] = {}
    for i, (dot, (x, y)) in enumerate(zip(dots, places, strict=True)):
        far = {j: math.hypot((x - a) * WIDE, (y - b) * HEIGHT) for j, (a, b) in enumerate(places)}
        if dot.label:
            heaps.setdefault(next((j for j in heaps if far[j] < 100 * GAP), i), []).append(
                dot.label
            )
    more = {i: f" + {len(some) - 3}" if len(some) > 3 else "" for i, some in heaps.items()}
    return [", ".join(heaps[i][:3]) + more[i] if i in heaps else "" for i in range(len(dots))]


def _name(label: str, spot: Spot, led: bool, sort: str) -> Markup:
    x, y = spot
    line = [tag("line", x1=0, y1=0, x2=f"{x - math.copysign(3, x):g}", y2=f"{y:g}")] if led else []
    anchor = "middle" if not x else "start" if x > 0 else "end"
    text = tag("text", label, x=f"{x:g}", y=f"{y:g}", dy="0.34em", text_anchor=anchor)
    return tag("g", *line, text, class_=sort)


def _reach(dot: Dot) -> float:
    """Return how far a dot reaches, with what lies free around it, in pixels."""
    return GAP * max(dot.size, 0.7)


def _beside(dot: Dot) -> list[Spot]:
    """Return where a name may stand: to the right, to the left, above and below."""
    reach = _reach(dot)
    return [(reach, 0), (-reach, 0), (0, -reach - LINE / 2), (0, reach + LINE / 2)]


def _rooms(label: str, place: tuple[float, float], width: int, spot: Spot, led: bool) -> list[Box]:
    """Return the room of a name, and what lies along the line that leads to it."""
    (x, y), (dx, dy), wide = _pixels(place, width), spot, LETTER * len(label)
    line = [_box(x + dx * n / 12, y + dy * n / 12, 3, 3) for n in range(3, 12)] if led else []
    return [_box(x + dx + (math.copysign(wide / 2, dx) if dx else 0), y + dy, wide, LINE), *line]


def _pixels(place: tuple[float, float], width: int) -> tuple[float, float]:
    return width * place[0] / 100, HEIGHT * (1 - place[1] / 100)


def _box(x: float, y: float, wide: float, high: float) -> Box:
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
