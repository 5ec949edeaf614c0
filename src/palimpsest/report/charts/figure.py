"""What all charts have: elements, the looks that tell series apart, keys, and values as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from palimpsest.report.charts.axes import Scale

GREY = 0
"""The hue of what all others are read against."""
HUES = 6
"""Hues that stay apart for colour-blind eyes, from 1; `chart.css` holds them, light and dark."""
SIGNS = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "square": "M-4-4H4V4H-4Z",
    "diamond": "M0-5.7L5.7 0L0 5.7L-5.7 0Z",
    "triangle": "M0-5.2L5.2 4H-5.2Z",
    "wedge": "M0 5.2L5.2-4H-5.2Z",
}
"""Marks around their middle, of about one area."""
DASHES = {"solid": "", "dash": "8 5", "dashdot": "9 4 2 4", "longdash": "14 5", "dot": "2 4"}
HEIGHT = 340
"""Height of a plane in pixels."""


@dataclass(frozen=True)
class Look:
    """What tells a series from others: a hue, and with it a mark and a dash for any eye."""

    hue: int = 1
    sign: str = "circle"
    """One of `SIGNS`; no mark if empty."""
    dash: str = "solid"
    """One of `DASHES`; no line if empty."""


LINE, DOT = Look(), Look(dash="")
"""How a lone line and a lone dot look."""


@dataclass(frozen=True)
class Key:
    """A line of a legend."""

    label: str
    look: Look
    hollow: bool = False
    ringed: bool = False


def look(i: int) -> Look:
    """Return the i-th of 30 looks that differ in hue, in mark, or in both."""
    sign = [*SIGNS][(i + i // HUES) % len(SIGNS)]
    return Look(1 + i % HUES, sign, [*DASHES][i // HUES % len(DASHES)])


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """Return an element. What is inside and the attributes' values are escaped if they are text.

    An attribute of None is left out; `_` in a name stands for `-`, and at its end for nothing.
    """
    told = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(
        Markup(name), Markup().join(told), Markup().join(map(escape, inside))
    )


def mark(
    look: Look, *, told: str = "", hollow: bool = False, ringed: bool = False, size: float = 1.0
) -> Markup:
    """Return a series' mark around the middle of its own coordinates, with what hovering tells."""
    shape = SIGNS[look.sign or "circle"]
    sort = f"mark hue-{look.hue}{' hollow' * hollow}"
    ring = tag("circle", r=f"{8.5 * size:.1f}", class_="ring") if ringed else ""
    path = tag("path", d=shape, transform=f"scale({size:.2f})" if size != 1 else None)
    return tag("g", tag("title", told) if told else "", ring, path, class_=sort)


def at(x: float, y: float, *inside: object) -> Markup:
    """Return what lies around a place, in per cent of the plane from its lower left corner."""
    return tag("svg", *inside, x=f"{x:g}%", y=f"{100 - y:g}%", width=1, height=1)


def legend(keys: Sequence[Key]) -> Markup:
    """Return the keys as a list that wraps; empty without any."""
    if not keys:
        return Markup()
    return tag("ul", *(tag("li", _sample(key), key.label) for key in keys), class_="keys")


def _sample(key: Key) -> Markup:
    own, line, wide = key.look, Markup(), 34 if key.look.dash else 16
    if own.dash:
        dashes = DASHES[own.dash] or None
        line = tag(
            "line", x1=1, x2=33, y1=9, y2=9, class_=f"hue-{own.hue}", stroke_dasharray=dashes
        )
    sign = tag("g", mark(own, hollow=key.hollow, ringed=key.ringed, size=0.85))
    sign = tag("svg", sign, x=wide / 2, y=9, width=1, height=1) if own.sign else ""
    return tag("svg", line, sign, width=wide, height=18, aria_hidden="true")


def grid(x: Scale, y: Scale, upright: bool = True) -> Markup:
    """Return the axes' numbers, and lines across the plane where they stand."""
    parts = []
    for place, text in y.ticks:
        to = f"{100 - place:g}%"
        parts.append(tag("line", x1=0, x2="100%", y1=to, y2=to, class_="grid"))
        parts.append(tag("text", text, x=0, y=to, dx=-8, dy="0.34em", class_="y"))
    for place, text in x.ticks:
        to = f"{place:g}%"
        if upright:
            parts.append(tag("line", x1=to, x2=to, y1=0, y2="100%", class_="grid"))
        parts.append(tag("text", text, x=to, y="100%", dy=20, class_="x"))
    return tag("g", *parts)


def drawn(
    title: str, told: str, x: Scale, y: Scale, *inside: object, keys: Sequence[Key]
) -> Markup:
    """Return a plane between two axes, with its legend.

    Args:
        title: what it shows, for who does not see it.
        told: what is to be seen there, in a sentence; may be empty.
        x: the horizontal axis.
        y: the vertical one.
        inside: elements in the plane's coordinates.
        keys: the legend.
    """
    gutter = max((len(text) for _, text in y.ticks), default=0)
    said = tag("desc", told) if told else ""
    plane = tag("svg", said, *inside, role="img", aria_label=title, width="100%", height=HEIGHT)
    return Markup().join(
        [
            legend(keys),
            tag("p", y.axis.title, class_="axis") if y.axis.title else "",
            tag("div", plane, class_="plane", style=f"--gutter: {gutter}"),
            tag("p", x.axis.title, class_="axis under") if x.axis.title else "",
        ]
    )


def values(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return all values of a chart as a table behind a fold."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (tag("tr", tag("th", first, scope="row"), *map(_cell, rest)) for first, *rest in rows)
    table = tag(
        "table", tag("caption", title), tag("thead", top), tag("tbody", *body), class_="narrow"
    )
    inside = tag("div", table, class_="scroll")
    return tag("details", tag("summary", "The same as a table"), inside, class_="values")


def _cell(value: object) -> Markup:
    return tag("td", value)
