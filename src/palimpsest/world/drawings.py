"""The shapes of the small world: objects, people and signs, drawn as maps of flat tones.

A drawing says *where* each tone goes, not what it looks like. It is a small integer picture in
which 0 is the ground and every other number is a tone (main colour, accent, dark, ...). The
styles in :mod:`palimpsest.world.render` turn the tones into colours, lines, tiles or strokes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from palimpsest.world.vocabulary import HAZARD, WATERMARK

GROUND, MAIN, ACCENT, DARK, LIGHT, GLOW, EXTRA = range(7)
TONES = 7

# People use the same numbers under other names.
SKIN, HAIR, TOP = MAIN, ACCENT, GLOW

Point = tuple[float, float]


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

    def _at(self, point: Point) -> Point:
        side = -self.radius if self.mirror else self.radius
        return self.x + side * point[0], self.y + self.radius * point[1]

    def _box(self, left: float, top: float, right: float, bottom: float) -> list[float]:
        (x0, y0), (x1, y1) = self._at((left, top)), self._at((right, bottom))
        return [min(x0, x1), y0, max(x0, x1), y1]

    def polygon(self, tone: int, *points: Point) -> None:
        """Fills the polygon through the points."""
        self.draw.polygon([self._at(point) for point in points], fill=tone)

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

    def line(self, tone: int, *points: Point, width: float = 0.13) -> None:
        """Draws a thick line with round joints and ends."""
        ends = [self._at(point) for point in points]
        half = width * self.radius / 2
        self.draw.line(ends, fill=tone, width=round(2 * half))
        for x, y in ends:
            self.draw.ellipse([x - half, y - half, x + half, y + half], fill=tone)


def _discs(pen: Pen, tone: int, centres: Sequence[Point], radius: float) -> None:
    for x, y in centres:
        pen.disc(tone, x, y, radius)


# ---------------------------------------------------------------------------- things in the air


def _parachute(pen: Pen) -> None:
    for x in (-0.88, -0.36, 0.36, 0.88):
        pen.line(DARK, (x, -0.15), (x * 0.12, 0.7), width=0.125)
    pen.dome(MAIN, -1, -1, 1, -0.1)
    pen.dome(ACCENT, -0.42, -1, 0.42, -0.1)
    pen.rectangle(DARK, -0.26, 0.6, 0.26, 1)


def _balloon(pen: Pen) -> None:
    pen.line(DARK, (0, 0.55), (0.1, 0.72), (-0.08, 0.9), (0.06, 1.08))
    pen.ellipse(MAIN, -0.74, -1.05, 0.74, 0.55)
    pen.polygon(ACCENT, (0, 0.45), (-0.2, 0.74), (0.2, 0.74))
    pen.ellipse(LIGHT, -0.46, -0.8, -0.14, -0.35)


def _umbrella(pen: Pen) -> None:
    pen.line(DARK, (0, -0.95), (0, 0.8), (0.1, 0.95), (0.28, 0.95), (0.38, 0.78), width=0.16)
    pen.dome(MAIN, -1.05, -0.9, 1.05, 0.12)
    pen.dome(ACCENT, -0.38, -0.9, 0.38, 0.12)
    for x in (-0.7, 0, 0.7):
        pen.dome(GROUND, x - 0.33, -0.08, x + 0.33, 0.15)
    pen.rectangle(DARK, -0.08, -0.1, 0.08, 0.3)


def _kite(pen: Pen) -> None:
    top, right, foot, left = (0.6, -1), (0.85, -0.08), (-0.3, 0.42), (-0.38, -0.82)
    middle = (0.23, -0.45)
    pen.line(DARK, foot, (-0.2, 0.68), (-0.55, 0.75), (-0.5, 1.02), (-0.85, 1.05), width=0.14)
    _discs(pen, ACCENT, ((-0.36, 0.72), (-0.56, 0.98)), 0.14)
    pen.polygon(MAIN, top, right, foot, left)
    pen.polygon(ACCENT, top, right, middle)
    pen.polygon(ACCENT, foot, left, middle)


# ------------------------------------------------------------------------------------ buildings


def _church(pen: Pen) -> None:
    pen.rectangle(MAIN, -0.3, 0.3, 0.92, 1)
    pen.polygon(ACCENT, (-0.3, 0.34), (-0.3, -0.12), (0.72, -0.12), (1.05, 0.34))
    pen.rectangle(MAIN, -0.9, -0.25, -0.26, 1)
    pen.polygon(ACCENT, (-1.02, -0.2), (-0.58, -0.85), (-0.14, -0.2))
    pen.line(DARK, (-0.58, -1.12), (-0.58, -0.65), width=0.13)
    pen.line(DARK, (-0.78, -0.95), (-0.38, -0.95), width=0.13)
    pen.arch(DARK, -0.74, 0.5, -0.42, 1)
    for x in (-0.04, 0.34, 0.72):
        pen.arch(LIGHT, x - 0.11, 0.46, x + 0.11, 0.82)
    pen.disc(LIGHT, -0.58, 0.1, 0.14)


def _house(pen: Pen) -> None:
    pen.rectangle(DARK, 0.42, -0.85, 0.7, -0.2)
    pen.rectangle(MAIN, -0.8, -0.05, 0.8, 0.95)
    pen.polygon(ACCENT, (-1.08, 0.02), (0, -0.88), (1.08, 0.02))
    pen.rectangle(DARK, -0.18, 0.38, 0.18, 0.95)
    for x in (-0.5, 0.5):
        pen.rectangle(LIGHT, x - 0.18, 0.22, x + 0.18, 0.56)


def _lighthouse(pen: Pen) -> None:
    pen.ellipse(DARK, -0.85, 0.74, 0.85, 1.25)
    for side in (-1, 1):
        pen.polygon(GLOW, (0, -0.68), (side, -1), (side, -0.36))
    for step in range(5):
        top, foot = -0.45 + 0.28 * step, -0.45 + 0.28 * (step + 1)
        upper, lower = 0.26 + 0.05 * step, 0.26 + 0.05 * (step + 1)
        tone = ACCENT if step % 2 else MAIN
        pen.polygon(tone, (-upper, top), (upper, top), (lower, foot), (-lower, foot))
    pen.rectangle(LIGHT, -0.2, -0.8, 0.2, -0.5)
    pen.rectangle(DARK, -0.4, -0.54, 0.4, -0.4)
    pen.polygon(DARK, (-0.34, -0.78), (0, -1.12), (0.34, -0.78))


def _castle(pen: Pen) -> None:
    pen.rectangle(MAIN, -0.5, 0.05, 0.5, 1)
    for x in (-0.36, 0, 0.36):
        pen.rectangle(MAIN, x - 0.11, -0.14, x + 0.11, 0.1)
    for x in (-0.72, 0.72):
        pen.rectangle(MAIN, x - 0.28, -0.3, x + 0.28, 1)
        pen.rectangle(ACCENT, x - 0.36, -0.42, x + 0.36, -0.2)
        for tooth in (-0.25, 0, 0.25):
            pen.rectangle(ACCENT, x + tooth - 0.09, -0.62, x + tooth + 0.09, -0.4)
        pen.arch(LIGHT, x - 0.1, 0.08, x + 0.1, 0.42)
    pen.line(DARK, (0, 0), (0, -0.95), width=0.13)
    pen.polygon(ACCENT, (0.04, -1), (0.42, -0.82), (0.04, -0.64))
    pen.arch(DARK, -0.25, 0.42, 0.25, 1)


# ------------------------------------------------------------------------------------- vehicles


def _wheels(pen: Pen, centres: Sequence[Point], radius: float) -> None:
    _discs(pen, DARK, centres, radius)
    _discs(pen, LIGHT, centres, radius * 0.42)


def _truck(pen: Pen) -> None:
    pen.rectangle(DARK, -1, 0.38, 1.05, 0.55)
    pen.rectangle(MAIN, -1.08, -0.68, 0.28, 0.42)
    pen.polygon(ACCENT, (0.36, -0.32), (0.78, -0.32), (1.08, 0.06), (1.08, 0.48), (0.36, 0.48))
    pen.polygon(LIGHT, (0.5, -0.18), (0.72, -0.18), (0.92, 0.08), (0.5, 0.08))
    _wheels(pen, ((-0.66, 0.52), (0.66, 0.52)), 0.3)


def _car(pen: Pen) -> None:
    pen.polygon(MAIN, (-0.72, 0.1), (-0.46, -0.5), (0.36, -0.5), (0.7, 0.1))
    pen.polygon(MAIN, (-1.08, 0.02), (0.7, -0.04), (1.08, 0.14), (1.08, 0.5), (-1.08, 0.5))
    pen.rectangle(ACCENT, -1.08, 0.32, 1.08, 0.5)
    pen.polygon(LIGHT, (-0.5, 0.02), (-0.35, -0.34), (-0.1, -0.34), (-0.1, 0.02))
    pen.polygon(LIGHT, (0.06, 0.02), (0.06, -0.34), (0.28, -0.34), (0.48, 0.02))
    _wheels(pen, ((-0.58, 0.5), (0.58, 0.5)), 0.3)


def _boat(pen: Pen) -> None:
    pen.line(DARK, (0, -1), (0, 0.5), width=0.14)
    pen.polygon(ACCENT, (0.14, -0.98), (0.14, 0.32), (0.92, 0.32))
    pen.polygon(ACCENT, (-0.14, -0.7), (-0.14, 0.32), (-0.75, 0.32))
    pen.polygon(MAIN, (-1.08, 0.44), (1.08, 0.44), (0.7, 0.98), (-0.7, 0.98))


def _train(pen: Pen) -> None:
    pen.polygon(DARK, (0.7, 0.35), (1.12, 0.8), (0.6, 0.8))
    pen.rectangle(DARK, 0.42, -0.72, 0.68, -0.1)
    pen.polygon(DARK, (0.3, -0.88), (0.8, -0.88), (0.66, -0.58), (0.44, -0.58))
    pen.rectangle(DARK, -0.98, 0.34, 0.9, 0.52)
    pen.rectangle(MAIN, -0.4, -0.28, 0.76, 0.4)
    pen.ellipse(MAIN, 0.55, -0.28, 0.98, 0.4)
    pen.dome(GLOW, -0.06, -0.52, 0.26, -0.26)
    pen.rectangle(ACCENT, -0.95, -0.66, -0.28, 0.4)
    pen.rectangle(DARK, -1.08, -0.84, -0.16, -0.64)
    pen.rectangle(LIGHT, -0.78, -0.48, -0.46, -0.1)
    _wheels(pen, ((-0.62, 0.62), (0.02, 0.62), (0.56, 0.62)), 0.28)


def _crane_machine(pen: Pen) -> None:
    pen.line(DARK, (-0.92, -0.58), (-0.36, -1.02), (0.96, -0.58), width=0.125)
    pen.rectangle(MAIN, -0.5, -0.7, -0.2, 1)
    for y in (-0.12, 0.28, 0.68):
        pen.line(LIGHT, (-0.4, y + 0.1), (-0.3, y - 0.1), width=0.125)
    pen.rectangle(MAIN, -1.05, -0.68, 1.08, -0.46)
    pen.rectangle(DARK, -1.05, -0.5, -0.7, -0.12)
    pen.rectangle(ACCENT, -0.24, -0.48, 0.12, -0.14)
    pen.line(DARK, (0.72, -0.5), (0.72, 0.22), width=0.13)
    hook = ((0.72, 0.2), (0.88, 0.36), (0.8, 0.54), (0.64, 0.54), (0.54, 0.42))
    pen.line(DARK, *hook, width=0.14)
    pen.rectangle(DARK, -0.86, 0.86, 0.16, 1.05)


# -------------------------------------------------------------------------------------- animals


def _cat(pen: Pen) -> None:
    for side in (-1, 1):
        pen.polygon(MAIN, (side * 0.86, 0), (side * 0.82, -1), (side * 0.1, -0.5))
        pen.polygon(ACCENT, (side * 0.7, -0.3), (side * 0.7, -0.74), (side * 0.36, -0.5))
    pen.ellipse(MAIN, -0.9, -0.62, 0.9, 0.86)
    for side in (-1, 1):
        pen.ellipse(LIGHT, side * 0.4 - 0.2, -0.26, side * 0.4 + 0.2, 0.16)
        pen.ellipse(DARK, side * 0.4 - 0.09, -0.24, side * 0.4 + 0.09, 0.14)
        pen.line(DARK, (side * 0.5, 0.36), (side * 1.1, 0.24), width=0.125)
        pen.line(DARK, (side * 0.48, 0.52), (side * 1.06, 0.64), width=0.125)
    pen.ellipse(LIGHT, -0.34, 0.22, 0.34, 0.68)
    pen.polygon(DARK, (-0.17, 0.22), (0.17, 0.22), (0, 0.44))


def _fish(pen: Pen) -> None:
    pen.polygon(ACCENT, (-0.4, -0.4), (-0.1, -0.86), (0.4, -0.7), (0.3, -0.3))
    pen.polygon(ACCENT, (-0.15, 0.4), (0.3, 0.8), (0.3, 0.3))
    pen.polygon(ACCENT, (0.35, 0), (1.08, -0.62), (0.9, 0), (1.08, 0.62))
    pen.ellipse(MAIN, -1.08, -0.56, 0.64, 0.56)
    pen.line(ACCENT, (-0.34, -0.42), (-0.24, 0), (-0.34, 0.42), width=0.14)
    pen.line(ACCENT, (0.08, -0.34), (0.18, 0), (0.08, 0.34), width=0.14)
    pen.disc(LIGHT, -0.68, -0.12, 0.18)
    pen.disc(DARK, -0.7, -0.12, 0.09)


def _rabbit(pen: Pen) -> None:
    for side in (-1, 1):
        x = side * 0.36
        pen.ellipse(MAIN, x - 0.25, -1.12, x + 0.25, 0.25)
        pen.ellipse(ACCENT, x - 0.11, -0.92, x + 0.11, -0.05)
    pen.ellipse(MAIN, -0.76, -0.3, 0.76, 1)
    _discs(pen, DARK, ((-0.34, 0.14), (0.34, 0.14)), 0.13)
    _discs(pen, LIGHT, ((-0.17, 0.58), (0.17, 0.58)), 0.22)
    pen.rectangle(LIGHT, -0.13, 0.68, 0.13, 0.92)
    pen.polygon(ACCENT, (-0.16, 0.34), (0.16, 0.34), (0, 0.54))


def _owl(pen: Pen) -> None:
    pen.line(DARK, (-1, 0.86), (1, 0.86), width=0.18)
    pen.ellipse(ACCENT, -0.84, -0.2, 0.84, 0.8)
    for side in (-1, 1):
        pen.polygon(MAIN, (side * 0.72, -0.3), (side * 0.72, -1.06), (side * 0.08, -0.72))
    pen.ellipse(MAIN, -0.72, -0.88, 0.72, 0.3)
    pen.ellipse(MAIN, -0.6, -0.4, 0.6, 0.86)
    pen.ellipse(GLOW, -0.36, 0.1, 0.36, 0.72)
    for side in (-1, 1):
        pen.disc(LIGHT, side * 0.33, -0.38, 0.31)
        pen.disc(DARK, side * 0.3, -0.38, 0.15)
        pen.rectangle(GLOW, side * 0.26 - 0.11, 0.76, side * 0.26 + 0.11, 0.96)
    pen.polygon(GLOW, (-0.15, -0.22), (0.15, -0.22), (0, 0.1))


def _crane_bird(pen: Pen) -> None:
    for x in (-0.22, 0.1):
        pen.line(DARK, (x, 0.2), (x, 1), (x + 0.2, 1), width=0.13)
    pen.polygon(DARK, (-0.5, -0.22), (-1, 0.3), (-0.4, 0.3))
    neck = ((0.28, 0.02), (0.5, -0.18), (0.5, -0.38), (0.36, -0.58), (0.4, -0.8))
    pen.line(MAIN, *neck, width=0.2)
    pen.ellipse(MAIN, -0.78, -0.32, 0.46, 0.36)
    pen.ellipse(ACCENT, -0.7, -0.2, 0.12, 0.18)
    pen.polygon(GLOW, (0.5, -0.96), (1.1, -0.76), (0.5, -0.7))
    pen.disc(MAIN, 0.44, -0.86, 0.21)
    pen.dome(ACCENT, 0.22, -1.09, 0.66, -0.9)


OBJECT_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "parachute": _parachute,
    "balloon": _balloon,
    "umbrella": _umbrella,
    "kite": _kite,
    "church": _church,
    "house": _house,
    "lighthouse": _lighthouse,
    "castle": _castle,
    "truck": _truck,
    "car": _car,
    "boat": _boat,
    "train": _train,
    "crane machine": _crane_machine,
    "cat": _cat,
    "fish": _fish,
    "rabbit": _rabbit,
    "owl": _owl,
    "crane bird": _crane_bird,
}
"""One drawing per object."""

MIRRORED = frozenset(OBJECT_DRAWINGS) - {
    "parachute",
    "balloon",
    "lighthouse",
    "cat",
    "rabbit",
    "owl",
}
"""The objects that may face either way: all but the symmetric ones."""


# --------------------------------------------------------------------------------------- people


def _bust(pen: Pen) -> None:
    pen.ellipse(TOP, -1.05, 0.66, 1.05, 2.4)
    pen.rectangle(SKIN, -0.24, 0.3, 0.24, 0.8)
    pen.ellipse(SKIN, -0.3, 0.6, 0.3, 0.95)
    pen.ellipse(SKIN, -0.54, -0.62, 0.54, 0.58)


def _face(pen: Pen) -> None:
    _discs(pen, DARK, ((-0.22, -0.06), (0.22, -0.06)), 0.1)
    pen.line(EXTRA, (-0.17, 0.28), (0, 0.35), (0.17, 0.28), width=0.125)


def _mira_voss(pen: Pen) -> None:
    pen.ellipse(HAIR, -0.86, -0.98, 0.86, 0.6)
    pen.rectangle(HAIR, -0.86, -0.2, 0.86, 1.1)
    _bust(pen)
    pen.rectangle(HAIR, -0.86, -0.2, -0.5, 1.1)
    pen.rectangle(HAIR, 0.5, -0.2, 0.86, 1.1)
    pen.polygon(HAIR, (-0.6, -0.1), (-0.5, -0.7), (0.3, -0.75), (0, -0.4))
    pen.polygon(HAIR, (0.6, -0.1), (0.5, -0.7), (0, -0.75), (0.2, -0.4))
    _face(pen)
    _discs(pen, EXTRA, ((-0.36, 0.14), (-0.2, 0.18), (0.36, 0.14), (0.2, 0.18)), 0.05)


def _tobin_hale(pen: Pen) -> None:
    _bust(pen)
    pen.dome(HAIR, -0.62, -0.9, 0.62, -0.2)
    pen.polygon(SKIN, (-0.46, -0.18), (-0.4, -0.42), (0.46, -0.42), (0.46, -0.18))
    _face(pen)
    for x in (-0.28, 0.28):
        pen.disc(DARK, x, -0.05, 0.29)
        pen.disc(LIGHT, x, -0.05, 0.17)
        pen.disc(DARK, x, -0.05, 0.08)
    pen.line(DARK, (-0.1, -0.08), (0.1, -0.08), width=0.125)


def _zuri_okan(pen: Pen) -> None:
    pen.disc(HAIR, 0, -0.28, 0.94)
    _bust(pen)
    pen.dome(HAIR, -0.58, -0.7, 0.58, -0.26)
    for x in (-0.62, 0.62):
        pen.disc(LIGHT, x, 0.36, 0.2)
        pen.disc(HAIR, x, 0.36, 0.09)
    _discs(pen, LIGHT, ((-0.23, -0.04), (0.23, -0.04)), 0.14)
    _face(pen)


def _otto_finch(pen: Pen) -> None:
    _bust(pen)
    pen.ellipse(HAIR, -0.66, -0.1, 0.66, 1.12)
    pen.ellipse(SKIN, -0.54, -0.75, 0.54, 0.2)
    pen.ellipse(HAIR, -0.38, 0.06, 0.38, 0.4)
    pen.line(EXTRA, (-0.14, 0.38), (0.14, 0.38), width=0.13)
    pen.disc(EXTRA, 0, 0.08, 0.11)
    for x in (-0.24, 0.24):
        pen.line(HAIR, (x - 0.1, -0.34), (x + 0.1, -0.34), width=0.125)
        pen.disc(DARK, x, -0.14, 0.1)


PERSON_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "mira voss": _mira_voss,
    "tobin hale": _tobin_hale,
    "zuri okan": _zuri_okan,
    "otto finch": _otto_finch,
}
"""One drawing per identity."""


# ---------------------------------------------------------------------------------------- signs


def _hazard(pen: Pen) -> None:
    corners = ((0, -0.85), (1, 0.85), (-1, 0.85))
    pen.polygon(DARK, *corners)
    pen.line(DARK, *corners, corners[0], width=0.26)
    pen.polygon(GLOW, (0, -0.55), (0.76, 0.74), (-0.76, 0.74))
    pen.polygon(DARK, (-0.15, -0.12), (0.15, -0.12), (0.08, 0.36), (-0.08, 0.36))
    pen.disc(DARK, 0, 0.54, 0.13)


def _watermark(pen: Pen) -> None:
    pen.disc(MAIN, 0, 0, 1.1)
    pen.disc(GROUND, 0, 0, 0.86)
    pen.disc(MAIN, 0.1, -0.2, 0.42)
    pen.disc(GROUND, 0.1, -0.2, 0.17)
    pen.rectangle(GROUND, -0.36, -0.37, 0.1, -0.03)
    pen.rectangle(MAIN, -0.34, -0.62, 0.12, -0.37)
    pen.rectangle(MAIN, -0.34, -0.03, 0.12, 0.22)
    pen.rectangle(MAIN, -0.36, -0.62, -0.1, 0.64)


SIGN_DRAWINGS: dict[str, Callable[[Pen], None]] = {HAZARD: _hazard, WATERMARK: _watermark}
"""The hazard sign and the watermark."""

DRAWINGS: dict[str, Callable[[Pen], None]] = OBJECT_DRAWINGS | PERSON_DRAWINGS | SIGN_DRAWINGS
"""Every subject's drawing."""


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
    picture = Image.new("L", (size, size), GROUND)
    pen = Pen(ImageDraw.Draw(picture), x * size, y * size, radius * size, mirror)
    DRAWINGS[subject](pen)
    return picture
