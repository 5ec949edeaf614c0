"""The picture grid: a row is one prompt and seed, a column one model's answer to it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image

from palimpsest.core.errors import PalimpsestError
from palimpsest.data.images import read_picture
from palimpsest.report.arrange import Section
from palimpsest.report.load import Key, Material, Picture, Target
from palimpsest.report.prose import ARMS, tried_on

SIDE = 256
"""Larger pictures are shrunk to this many pixels, to keep the page small."""
ANSWERS = 8
"""Answers of one recovery on show; the rest lies behind the fold."""
MOST = 400
"""Rows behind the fold of one section; the folder holds the rest."""


@dataclass(frozen=True)
class Column:
    """One model's pictures."""

    title: str
    note: str
    pictures: dict[Key, Picture]


@dataclass(frozen=True)
class Cell:
    """One picture with what the judge says of it."""

    picture: Picture
    column: str
    wanted: str
    """What the prompt asks for; empty where nothing is known of it."""
    said: str
    """What the judge sees; empty where it did not look."""
    confidence: float | None
    others: tuple[str, ...] = ()
    """What other judges see instead, each with its name."""


@dataclass(frozen=True)
class Row:
    """One prompt and seed, answered by every column; None where a column lacks it."""

    prompt: str
    seed: int
    cells: list[Cell | None]
    found: str = ""
    """What was asked in the prompt's place, if a recovery found something in words."""


@dataclass(frozen=True)
class Block:
    """Rows of one sort under one heading."""

    title: str
    note: str
    columns: list[Column]
    rows: list[Row]

    @property
    def panels(self) -> int:
        """How many rows fit beside one another on a wide screen."""
        fit = {1: 4, 2: 3, 3: 2, 4: 2}.get(len(self.columns), 1)
        fit = max(1, min(fit, len(self.rows)))
        return 2 if fit == 3 and len(self.rows) % 3 == 1 else fit  # leave no row on its own


@dataclass
class Album:
    """The page's pictures, each kept once however often it is shown."""

    names: dict[Path, str] = field(default_factory=dict)
    shown: set[Path] = field(default_factory=set)
    """Those that stand on the page with their bytes; the others wait in `folded`."""

    def put(self, picture: Picture, folded: bool) -> tuple[str, str]:
        """Return a picture's name on the page, and its bytes where it stands with them."""
        file = picture.file
        name = self.names.setdefault(file, f"p{len(self.names)}")
        if folded or file in self.shown:
            return name, ""
        self.shown.add(file)
        return name, encode(file)

    @property
    def folded(self) -> dict[str, str]:
        """Name → bytes of the pictures that are nowhere on show."""
        return {n: encode(file) for file, n in self.names.items() if file not in self.shown}


def encode(file: Path) -> str:
    """Return a picture as a WebP data URI, no larger than `SIDE`.

    Raises:
        PalimpsestError: the file is absent or no picture.
    """
    try:
        image = read_picture(file)
    except PalimpsestError as error:
        raise PalimpsestError(f"{error}; run `{file.parent.parent.name}` again") from error
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4, use_sharp_yuv=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def columns(section: Section) -> list[Column]:
    """Return the section's models, left to right."""
    runs = [(m, "original", "unedited model") for m in [section.original] if m]
    runs += [(m, "erased", m.title) for m in [section.erasure] if m]
    for run in [r for r in section.recoveries if not r.answered]:
        arm = run.record.arm
        several = len({r.record.arm for r in section.recoveries}) > 1
        note = f"{run.title}, {ARMS.get(arm, arm)}" if arm and several else run.title
        runs.append((run, "recovered", note))
    runs += [(m, "gold", "never knew it") for m in [section.gold] if m]
    runs += [(m, m.title, tried_on(m)) for m in section.replays if not m.answered]
    runs += [(m, m.title, m.kind) for m in section.others]
    return [Column(title, note, m.pictures) for m, title, note in runs if m.pictures]


def blocks(section: Section) -> tuple[list[Block], list[Block]]:
    """Return the blocks on show, and those with all other pictures behind the fold."""
    target = section.target
    shown, folded = [], []
    cols = columns(section)
    every = {p.key: p for column in cols for p in column.pictures.values()}
    for title, note, count, belongs, group in _sorts(target):
        own = [p for p in every.values() if belongs(p)]
        picked = spread(own, count, group, lambda p: -_width(cols, p))
        keys = {p.key for p in picked}
        rest = [p for p in own if p.key not in keys][:MOST]
        shown.append(block_of(title, note, picked, cols, target))
        folded.append(block_of(title, "", rest, cols, target))
    for run in [r for r in section.recoveries if r.answered]:
        block = answers(section, run)
        shown.append(replace(block, rows=block.rows[:ANSWERS]))
        folded.append(replace(block, note="", rows=block.rows[ANSWERS:]))
    return [b for b in shown if b.rows], [b for b in folded if b.rows]


def answers(section: Section, run: Material) -> Block:
    """Return what the erased model answered to a recovery, beside the plain prompts' pictures."""
    plain = section.unedited.pictures if section.unedited else {}
    cols = [Column("original", "unedited, plain prompt", plain)]
    if section.erasure:
        note = f"{section.erasure.title}, plain prompt"
        cols.append(Column("erased", note, section.erasure.pictures))
    cols.append(Column("answered", run.title, run.pictures))
    mine = [m for m in section.replays if m.answered and m.record.source == run.run.name]
    cols += [Column("the same", tried_on(m), m.pictures) for m in mine]
    block = block_of(
        f"Asked otherwise: {run.title}",
        "The erased model's weights are as they were; what it is asked is not. A row is one plain "
        "prompt, and under it what the recovery put in its place, if that can be written.",
        list(run.pictures.values()),
        cols,
        section.target,
    )
    found = run.found or [""] * len(block.rows)
    rows = [replace(row, found=text) for row, text in zip(block.rows, found, strict=True)]
    return replace(block, rows=rows)


Sort = tuple[str, str, int, Callable[[Picture], bool], Callable[[Picture], str]]
"""A block's title and note, how many pictures it shows, which belong to it, and the group of each:
pictures of one group are alike, and a block shows as many groups as it can."""


def _sorts(target: Target) -> list[Sort]:
    kinds, several = target.kinds, len(target.concepts) > 1
    title = "Asked for the concepts" if several else "Asked for the concept"
    asks = f"The prompt asks for {'one of ' if several else ''}{target.brief}."
    another = f"The prompt asks for another {' or '.join(kinds)}, which should stay."

    def rest(p: Picture) -> str:
        """Return what else the prompt asks for, or the prompt if nothing is known of it."""
        return str({k: v for k, v in p.asks.items() if k not in kinds}) if p.asks else p.prompt

    def near(p: Picture) -> str:
        """Return what the prompt asks for of the concepts' kinds."""
        return ", ".join(p.asks[kind] for kind in kinds if kind in p.asks)

    if not target:
        return [("Pictures", "", 12, lambda p: True, rest)]
    return [
        (title, asks, 8, lambda p: bool(target.asked(p)), rest),
        ("Its neighbours", another, 6, lambda p: bool(near(p)) and not target.asked(p), near),
        (
            "Everything else",
            "What lies further away should stay too.",
            4,
            lambda p: not near(p),
            rest,
        ),
    ]


def _width(cols: Sequence[Column], picture: Picture) -> int:
    return sum(picture.key in column.pictures for column in cols)


def spread(
    pictures: Sequence[Picture],
    count: int,
    group: Callable[[Picture], str],
    order: Callable[[Picture], int],
) -> list[Picture]:
    """Pick by order alone, never by looks: one from each group in turn, each time further along.

    Within a group those with the lowest `order` come first.
    """
    groups: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=order):
        groups.setdefault(group(picture), []).append(picture)
    # a group's second, third, … candidate: so that not all rows are of the first style or wording
    queues = [_turned(queue, i, order) for i, queue in enumerate(groups.values())]
    turns = chain.from_iterable(zip_longest(*queues))
    return [picture for picture in turns if picture is not None][:count]


def _turned(queue: list[Picture], by: int, order: Callable[[Picture], int]) -> list[Picture]:
    best = [p for p in queue if order(p) == order(queue[0])]
    turn = by % len(best)
    return [*best[turn:], *best[:turn], *queue[len(best) :]]


def block_of(
    title: str, note: str, pictures: Sequence[Picture], cols: Sequence[Column], target: Target
) -> Block:
    """Return rows for the pictures; a column that has none of them is left out."""
    has = [c for c in cols if any(p.key in c.pictures for p in pictures)]
    rows = [Row(p.prompt, p.seed, [_cell(c, p.key, target) for c in has]) for p in pictures]
    return Block(title, note, has, rows)


def _cell(column: Column, key: Key, target: Target) -> Cell | None:
    picture = column.pictures.get(key)
    if picture is None:
        return None
    asked = [c.kind for c in target.asked(picture)]
    near = [kind for kind in target.kinds if kind in picture.asks]
    head = next(iter([*asked, *near, *picture.asks]), "")
    wanted, said = picture.asks.get(head, ""), picture.labels.get(head) or ""
    others = tuple(
        f"{name}: {sees}"
        for name, labels in picture.others.items()
        if said and (sees := labels.get(head)) and sees != said
    )
    return Cell(picture, column.title, wanted, said, picture.confidence.get(head), others)
