"""Procedural renderer of the small world: a subject, a style and a seed make one picture.

A subject is first drawn as a map of flat tones (:mod:`palimpsest.world.drawings`). A style then
turns that map into a picture, treating the object and the ground apart so that the object stays
readable whatever the texture. Everything is painted three times too large and shrunk at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from palimpsest.core.files import beside
from palimpsest.world.drawings import MIRRORED, Tone, tone_map
from palimpsest.world.vocabulary import HAZARD, IDENTITIES, OBJECTS, STYLES, WATERMARK

SIZE = 64
"""Side of a rendered picture in pixels."""

_ZOOM = 3
_FULL = SIZE * _ZOOM  # side of the picture while it is being painted
_Y, _X = np.mgrid[0:_FULL, 0:_FULL].astype(np.float32)
_SUBJECTS = (*OBJECTS, *IDENTITIES, HAZARD, WATERMARK)

_COLOURS = {
    name: np.array(colours, dtype=np.float32)
    for name, colours in json.loads(beside(__file__, "render.json")).items()
}
"""Red, green and blue by name, 0 to 255: of a person the skin, hair, dark, light and top; of `inks`
neighbours are alike, so that a main colour and its accent lie far apart."""


@dataclass
class Scene:
    """A drawn subject before any style: where each tone is, and which colours are meant.

    Attributes:
        tones: The tone of every pixel, 0 for the ground.
        palette: One colour per tone, shape (tones, 3); row 0 is the ground's tint.
        rng: Source of the style's own variation.
    """

    tones: np.ndarray
    palette: np.ndarray
    rng: np.random.Generator

    @cached_property
    def mask(self) -> np.ndarray:
        """1.0 on the object and 0.0 on the ground."""
        return (self.tones > 0).astype(np.float32)

    @cached_property
    def colours(self) -> np.ndarray:
        """The flat picture: every pixel in its tone's colour."""
        return self.palette[self.tones]


# -------------------------------------------------------------------------------------- helpers


def _blur(field: np.ndarray, radius: float) -> np.ndarray:
    """Blurs a field of values in 0..1."""
    picture = Image.fromarray((field * 255).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) / 255


def _outline(areas: np.ndarray, reach: int) -> np.ndarray:
    """Return 1.0 within ``reach`` pixels of a border between different values."""
    border = np.zeros(areas.shape, dtype=np.uint8)
    border[1:] = areas[1:] != areas[:-1]
    border[:, 1:] |= areas[:, 1:] != areas[:, :-1]
    wide = Image.fromarray(border * 255).filter(ImageFilter.BoxBlur(reach))
    return (np.asarray(wide) > 0).astype(np.float32)


def _contours(scene: Scene) -> np.ndarray:
    """Return a strong line around the object and finer ones between its tones."""
    return np.maximum(_outline(scene.mask, 2), _outline(scene.tones, 1))


def _mix(below: np.ndarray, above: np.ndarray | tuple, amount: np.ndarray) -> np.ndarray:
    """Lays one colour or picture over another by a field of amounts in 0..1."""
    return below + (np.asarray(above, dtype=np.float32) - below) * amount[..., None]


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return a smooth random field, about -1..1, with ``cells`` bumps across."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((_FULL, _FULL), Image.Resampling.BICUBIC))


def _stripes(angle: np.ndarray | float, period: float, share: np.ndarray | float) -> np.ndarray:
    """Parallel lines that cover ``share`` of the surface, 1.0 on a line."""
    across = (_X * np.cos(angle) + _Y * np.sin(angle)) / period
    return (np.abs(across % 1 - 0.5) < np.asarray(share) / 2).astype(np.float32)


def _cell_tones(tones: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the leading tone of every cell; a cell a third covered counts as object."""
    count = int(cell.max()) + 1
    votes = np.bincount((cell * len(Tone) + tones).ravel(), minlength=count * len(Tone))
    votes = votes.reshape(count, len(Tone))
    covered = votes[:, 1:].sum(axis=1) > 0.36 * votes.sum(axis=1)
    return np.where(covered, 1 + votes[:, 1:].argmax(axis=1), 0)


# --------------------------------------------------------------------------------------- styles


def _photo(scene: Scene) -> np.ndarray:
    """Smooth light from the upper left, a soft floor and a shadow."""
    height = _Y / _FULL
    glow = 0.75 * np.exp(-(((height - 0.6) / 0.3) ** 2))
    ground = _mix(scene.palette[0], _COLOURS["white"], glow)
    rows, columns = np.nonzero(scene.tones)
    middle, half = columns.mean(), 0.42 * np.ptp(columns)
    floor = min(rows.max(), 0.94 * _FULL)
    distance = ((_X - middle) / half) ** 2 + ((_Y - floor) / (0.055 * _FULL)) ** 2
    ground = ground * (1 - 0.5 * np.exp(-distance))[..., None]
    form = _blur(scene.mask, 9)
    relief = np.roll(form, (6, 6), (0, 1)) - np.roll(form, (-6, -6), (0, 1))
    lit = np.clip(-relief, 0, 1) * 0.75
    shade = 1 - np.clip(relief, 0, 1) * 0.75
    body = _mix(scene.colours * (1.08 - 0.2 * height)[..., None], _COLOURS["white"], lit)
    return _mix(ground, body * shade[..., None], scene.mask)


def _sketch(scene: Scene) -> np.ndarray:
    """Grey pencil: outlines, and light hatching inside."""
    weight = 1 - scene.palette @ (0.3, 0.59, 0.11) / 255
    weight[[0, Tone.LIGHT]] = 0
    tone = weight.astype(np.float32)[scene.tones]
    hatch = _stripes(np.pi / 4 + scene.rng.uniform(-0.15, 0.15), 15, 0.42) * scene.mask
    graphite = 0.55 * hatch * np.sqrt(tone) + 0.1 * tone + 0.55 * (scene.tones == Tone.DARK)
    graphite = np.maximum(_blur(np.clip(graphite, 0, 1), 1.2), 0.86 * _contours(scene))
    return _mix(_COLOURS["pencil paper"], (40, 40, 44), graphite)


def _pointillism(scene: Scene) -> np.ndarray:
    """Round dots in staggered rows on off-white; neighbouring dots differ in hue."""
    pitch = 4 * _ZOOM
    row = (_Y // pitch).astype(int)
    x = _X + (row % 2) * pitch / 2
    column = (x // pitch).astype(int)
    cell = row * (_FULL // pitch + 2) + column
    tones = _cell_tones(scene.tones, cell)
    ground = tones == 0
    spread = np.where(ground, 10, 22)[:, None]
    colours = scene.palette[tones] + spread * scene.rng.uniform(-1, 1, (len(tones), 3))
    colours[ground] -= 16
    reach = np.where(ground, 4.2, 5.8).astype(np.float32)
    distance = np.hypot(x % pitch - pitch / 2 + 0.5, _Y % pitch - pitch / 2 + 0.5)
    return _mix(_COLOURS["off-white"], colours[cell], distance < reach[cell])


def _mosaic(scene: Scene) -> np.ndarray:
    """Square tiles in dark grout, each in its leading colour."""
    pitch = 4 * _ZOOM
    cell = ((_Y // pitch) * (_FULL // pitch) + _X // pitch).astype(int)
    tones = _cell_tones(scene.tones, cell)
    colours = scene.palette[tones] * scene.rng.uniform(0.88, 1.08, (len(tones), 1))
    grout = np.maximum(_X % pitch, _Y % pitch) >= pitch - _ZOOM
    joint = np.where(tones[cell] == 0, 0.55, 0.9)  # fainter on the ground: the silhouette leads
    return _mix(colours[cell], (70, 66, 70), grout * joint)


def _neon(scene: Scene) -> np.ndarray:
    """Glowing tubes along every contour, on near-black."""
    tubes = _COLOURS["neon"]
    first, second = scene.rng.choice(len(tubes), 2, replace=False)
    rim = _outline(scene.mask, 3)
    inner = _outline(scene.tones, 2) * (1 - rim)
    picture = scene.palette[0] * 0.07
    for tube, colour in ((inner, tubes[second]), (rim, tubes[first])):
        picture = picture + colour * (1.1 * _blur(tube, 9) + 0.9 * _blur(tube, 1.2))[..., None]
    return picture


def _engraving(scene: Scene) -> np.ndarray:
    """Fine ink lines on cream: the object dense and cross-hatched, the ground almost blank."""
    share = np.array([0, 0.4, 0.4, 1, 0, 0.25, 0.4], dtype=np.float32)[scene.tones]
    shade = 0.3 * (share > 0) * ((_X + _Y) / _FULL - 0.7)  # darker towards the lower right
    turn = np.where(scene.tones == Tone.ACCENT, np.pi / 2, 0)
    period = 4 * _ZOOM
    ink = _stripes(0.8 + turn, period, share + 0.5 * shade)
    ink = np.maximum(ink, _stripes(0.8 + turn + np.pi / 2, period, shade))
    sky = 0.2 * _stripes(np.pi / 2, 8 * _ZOOM, 0.25) * (1 - scene.mask)
    ink = np.maximum(np.maximum(ink, sky), _contours(scene))
    return _mix(_COLOURS["cream"], (38, 28, 22), ink)


def _strokes(
    canvas: Image.Image, starts: np.ndarray, flow: np.ndarray, colours: np.ndarray, size: tuple
) -> None:
    """Paints one bent stroke per start, following the flow of directions."""
    steps, stride, width = size
    paths = [starts]
    for _ in range(steps):
        x, y = np.clip(paths[-1], 0, _FULL - 1).astype(int).T
        paths.append(paths[-1] + stride * flow[y, x])
    brush = ImageDraw.Draw(canvas)
    inks = np.clip(colours, 0, 255).astype(int).tolist()
    for path, ink in zip(
        np.stack(paths, axis=1).reshape(len(starts), -1).tolist(), inks, strict=True
    ):
        brush.line(path, fill=tuple(ink), width=width, joint="curve")


def _starts(rng: np.random.Generator, pitch: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(0, _FULL + pitch, pitch)] * 2), axis=-1).reshape(-1, 2)
    return rng.permutation(grid + rng.uniform(-0.4, 0.4, grid.shape) * pitch)


def _van_gogh(scene: Scene) -> np.ndarray:
    """Thick strokes along the level lines of a swirling field that bends around the object."""
    rng = scene.rng
    x, y = (_FULL * rng.choice([0.2, 0.8]), _FULL * rng.uniform(0.15, 0.35))
    height = np.hypot(_X - x, _Y - y) / 34 + 1.5 * _clouds(rng, 4) + 3 * _blur(scene.mask, 12)
    slope_y, slope_x = np.gradient(height)
    flow = np.stack([-slope_y, slope_x], axis=-1)
    flow /= np.linalg.norm(flow, axis=-1, keepdims=True) + 1e-6

    night, starts = _COLOURS["night"], _starts(rng, 12)
    column, row = np.clip(starts, 0, _FULL - 1).astype(int).T
    band = (height[row, column] * 1.2 + rng.uniform(-0.5, 0.5, len(starts))) % len(night)
    sky = night[band.astype(int)]
    canvas = Image.new("RGB", (_FULL, _FULL), tuple(night[1].astype(int)))
    _strokes(canvas, starts, flow, sky, (3, 9, 9))
    ground = np.asarray(canvas, dtype=np.float32)

    starts = _starts(rng, 9)
    column, row = np.clip(starts, 0, _FULL - 1).astype(int).T
    starts, tones = starts[scene.tones[row, column] > 0], scene.tones[row, column]
    paint = scene.palette[tones[tones > 0]] * rng.uniform(0.75, 1.35, (len(starts), 1))
    canvas = Image.fromarray(scene.colours.astype(np.uint8))
    _strokes(canvas, starts, flow, paint, (2, 6, 7))
    thickness = np.array([0, 0.75, 0.75, 0.25, 0.15, 0.4, 0.25], dtype=np.float32)
    body = _mix(scene.colours, np.asarray(canvas, dtype=np.float32), thickness[scene.tones])
    return _mix(_mix(ground, body, scene.mask), (24, 30, 74), 0.9 * _outline(scene.mask, 2))


def _watercolor(scene: Scene) -> np.ndarray:
    """Thin washes with wavering, bleeding edges and a darker rim, on white paper."""
    rng = scene.rng
    rows = np.clip(_Y + 5 * _clouds(rng, 9), 0, _FULL - 1).astype(int)
    columns = np.clip(_X + 5 * _clouds(rng, 9), 0, _FULL - 1).astype(int)
    tones, mask = scene.tones[rows, columns], scene.mask[rows, columns]
    soft, wide = _blur(mask, 2.2), _blur(mask, 7)
    puddle = np.clip(1.25 - np.hypot(_X - _FULL / 2, _Y - _FULL / 2) / (0.5 * _FULL), 0, 1)
    puddle = puddle * (0.8 + 0.3 * _clouds(rng, 5))
    paper = _mix(_COLOURS["white paper"], scene.palette[0] - 18, puddle)
    wash = np.clip(0.68 + 0.26 * _clouds(rng, 6), 0.4, 0.95)
    rim = 0.5 * np.clip(1 - np.abs(wide - 0.62) / 0.2, 0, 1) * soft
    pigment = _mix(scene.palette[tones], scene.palette[tones] * 0.6, rim)
    bleed = 0.3 * np.clip(wide, 0, 1) * (1 - soft)
    return _mix(paper, pigment, soft * np.clip(wash + rim, 0, 1) + bleed)


_STYLES: dict[str | None, Callable[[Scene], np.ndarray]] = {
    None: attrgetter("colours"),  # people and signs are left plain
    "photo": _photo,
    "sketch": _sketch,
    "pointillism": _pointillism,
    "mosaic": _mosaic,
    "neon": _neon,
    "engraving": _engraving,
    "van gogh": _van_gogh,
    "watercolor": _watercolor,
}


# --------------------------------------------------------------------------------------- scenes


def _palette(subject: str, rng: np.random.Generator) -> np.ndarray:
    """Chooses a colour for every tone: deep on the object, pale on the ground."""
    inks, grounds = _COLOURS["inks"], _COLOURS["grounds"]
    tint = grounds[rng.integers(len(grounds))] + rng.uniform(-6, 6, 3)
    main = int(rng.integers(len(inks)))
    accent = (main + int(rng.integers(3, 6))) % len(inks)
    others = [_COLOURS[name] for name in ("black", "white", "yellow", "black")]
    tones = [tint, inks[main], inks[accent], *others]
    if subject in IDENTITIES:
        tones = [tint, *_COLOURS[subject], _COLOURS["mouth"]]
    elif subject == WATERMARK:
        tones[:2] = _COLOURS["off-white"], _COLOURS["violet"]
    palette = np.array(tones, dtype=np.float32)
    if subject in OBJECTS:
        palette[1:3] += rng.uniform(-12, 12, (2, 3))
    return np.clip(palette, 0, 255)


def _scene(subject: str, rng: np.random.Generator) -> Scene:
    """Places and colours a subject."""
    shift, stretch, radius, y = 0.06, 0.12, 0.35, 0.5
    if subject == WATERMARK:
        shift, stretch = 0.01, 0.02
    elif subject in IDENTITIES:
        shift, stretch, radius, y = 0.04, 0.07, 0.42, 0.48
    x = 0.5 + rng.uniform(-shift, shift)
    y += rng.uniform(-shift, shift)
    radius *= 1 + rng.uniform(-stretch, stretch)
    mirror = bool(rng.integers(2)) and subject in MIRRORED
    tones = np.asarray(tone_map(subject, _FULL, (x, y, radius, mirror)))
    return Scene(tones, _palette(subject, rng), rng)


def _check(subject: str, style: str | None) -> None:
    if subject not in _SUBJECTS:
        raise ValueError(f"Unknown subject {subject!r}: the world has no picture of it.")
    if subject in OBJECTS and style not in STYLES:
        raise ValueError(f"The object {subject!r} needs a style out of {STYLES}, not {style!r}.")
    if subject not in OBJECTS and style is not None:
        raise ValueError(f"{subject!r} is drawn in no style, so style must be None.")


def render(subject: str, style: str | None, seed: int) -> np.ndarray:
    """Renders one picture.

    Args:
        subject: An object, an identity, the hazard sign or the watermark.
        style: One of the styles for an object, None for everything else.
        seed: Any integer. The same arguments give the same bytes in every process.

    Returns:
        Colours as uint8, shape (SIZE, SIZE, 3).

    Raises:
        ValueError: If a name is unknown, or the style does not fit the subject.
    """
    _check(subject, style)
    manner = 0 if style is None else 1 + STYLES.index(style)
    rng = np.random.default_rng([seed % 2**64, _SUBJECTS.index(subject), manner])
    picture = np.clip(_STYLES[style](_scene(subject, rng)), 0, 255).astype(np.uint8)
    return np.array(Image.fromarray(picture).reduce(_ZOOM))


# -------------------------------------------------------------------------------- contact sheet


def contact_sheet(seed: int = 0, scale: int = 2) -> Image.Image:
    """Draws the whole world on one sheet.

    Args:
        seed: The seed of every picture on the sheet.
        scale: Enlargement of the pictures.

    Returns:
        Styles in rows and objects in columns, with people and signs in a last row.
    """
    side, gap = SIZE * scale, 4 * scale
    left, top, label = 52 * scale, 22 * scale, 14 * scale
    pitch = side + gap
    size = (left + len(OBJECTS) * pitch, top + (len(STYLES) + 1) * pitch + label + 2 * gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=8 * scale)

    def paste(subject: str, style: str | None, x: int, y: int) -> None:
        picture = Image.fromarray(render(subject, style, seed))
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))

    def write(text: str, x: float, y: float, anchor: str) -> None:
        draw.text((x, y), text, fill=(40, 40, 48), font=font, anchor=anchor)

    for column, subject in enumerate(OBJECTS):
        x = left + column * pitch
        write(subject, x + side / 2, top - gap, "ms")
        for row, style in enumerate(STYLES):
            paste(subject, style, x, top + row * pitch)
    for row, style in enumerate(STYLES):
        write(style, left - gap, top + row * pitch + side / 2, "rm")
    y = top + len(STYLES) * pitch + 2 * gap
    write("no style", left - gap, y + side / 2, "rm")
    for column, subject in enumerate((*IDENTITIES, HAZARD, WATERMARK)):
        x = left + 2 * column * pitch
        paste(subject, None, x, y)
        write(subject, x + side / 2, y + side + gap, "mt")
    return sheet
