"""The shapes of the small world: objects, people and signs, drawn as maps of flat tones.

A drawing says *where* each tone goes, not what it looks like. It is a small integer picture in
which 0 is the ground and every other number is a tone (main colour, accent, dark, ...). The
styles in :mod:`palimpsest.world.render` turn the tones into colours, lines, tiles or strokes.

`drawings.txt` has the drawings, a block each: its name, then its shapes, the lowest first. Each
line says the method of :class:`Pen`, the tone and the numbers; `part` draws another block there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image, ImageDraw

from palimpsest.core.files import beside
from palimpsest.world.vocabulary import OBJECTS


class Tone(IntEnum):
    """What a part of a subject is painted with; people use the same numbers by other names."""

    GROUND = 0
    MAIN = SKIN = 1
    ACCENT = HAIR = 2
    DARK = 3
    LIGHT = 4
    GLOW = TOP = 5
    EXTRA = 6


DRAWINGS: dict[str, list[list[str]]] = {
    name: [shape.split() for shape in shapes]
    for name, *shapes in map(str.splitlines, beside(__file__, "drawings.txt").split("\n\n"))
}
"""Each subject's shapes, and those of parts that several have, as words."""

MIRRORED = {*OBJECTS} - {"parachute", "balloon", "lighthouse", "cat", "rabbit", "owl"}
"""The objects that may face either way: all but the symmetric ones."""


@dataclass
class Pen:
    """Draws tones in unit coordinates: x to the right, y down, the subject inside -1..1.

    Attributes:
        draw: Pillow's drawing handle on a picture of mode ``L``.
        x: Centre of the subject, in pixels.
        y: Centre of the subject, in pixels.
        radius: Pixels per unit.
        mirror: Whether left and right change places.
    """

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    mirror: bool = False

    def _points(self, numbers: tuple[float, ...]) -> list[tuple[float, float]]:
        """Points in pixels, of x and y in turn."""
        side = -self.radius if self.mirror else self.radius
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return [(self.x + side * x, self.y + self.radius * y) for x, y in pairs]

    def _box(self, *corners: float) -> list[float]:
        (x0, y0), (x1, y1) = self._points(corners)
        return [min(x0, x1), y0, max(x0, x1), y1]

    def polygon(self, tone: int, *points: float) -> None:
        """Fills the polygon through the points."""
        self.draw.polygon(self._points(points), fill=tone)

    def rectangle(self, tone: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fills a rectangle."""
        self.draw.rectangle(self._box(left, top, right, bottom), fill=tone)

    def ellipse(self, tone: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fills the ellipse inside a box."""
        self.draw.ellipse(self._box(left, top, right, bottom), fill=tone)

    def disc(self, tone: int, x: float, y: float, radius: float) -> None:
        """Fills a circle around a centre."""
        self.ellipse(tone, x - radius, y - radius, x + radius, y + radius)

    def dome(self, tone: int, left: float, top: float, right: float, foot: float) -> None:
        """Fills the upper half of an ellipse that stands on the line y = foot."""
        self.draw.pieslice(self._box(left, top, right, 2 * foot - top), 180, 360, fill=tone)

    def arch(self, tone: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fills a doorway: a rectangle with a round head."""
        spring = top + (right - left) / 2
        self.dome(tone, left, top, right, spring)
        self.rectangle(tone, left, spring - 0.02, right, bottom)

    def line(self, tone: int, width: float, *points: float) -> None:
        """Draws a thick line with round joints and ends."""
        ends = self._points(points)
        half = width * self.radius / 2
        self.draw.line(ends, fill=tone, width=round(2 * half))
        for x, y in ends:
            self.draw.ellipse([x - half, y - half, x + half, y + half], fill=tone)


def tone_map(subject: str, size: int, pen_at: tuple[float, float, float, bool]) -> Image.Image:
    """Draws a subject as a map of tones.

    Args:
        subject: A key of :data:`DRAWINGS`.
        size: Side of the square picture in pixels.
        pen_at: Centre x, centre y and radius as fractions of the side, and whether to mirror.

    Returns:
        A picture of mode ``L`` whose values are tones, 0 where the ground shows.
    """
    x, y, radius, mirror = pen_at
    picture = Image.new("L", (size, size), Tone.GROUND)
    pen = Pen(ImageDraw.Draw(picture), x * size, y * size, radius * size, mirror)
    for shape, tone, *numbers in _shapes(subject):
        getattr(pen, shape)(Tone[tone.upper()], *map(float, numbers))
    return picture


def _shapes(name: str) -> Iterator[list[str]]:
    for words in DRAWINGS[name]:
        yield from _shapes(words[1]) if words[0] == "part" else [words]
