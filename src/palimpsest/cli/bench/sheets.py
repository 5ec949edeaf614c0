"""A sheet of pictures for every eraser: what it did to each concept, and to other things."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from palimpsest.cli.bench.campaign import sheet_name
from palimpsest.cli.bench.planner import Planned
from palimpsest.core.atomic import whole
from palimpsest.core.prompts import Prompt
from palimpsest.runs import images
from palimpsest.runs.folder import Run

OWN, REST = 6, 4
"""Pictures of the concept, and of other things, that are shown of each run."""
CELL, GAP, LEFT = 72, 4, 150


def write(planned: Sequence[Planned], folder: Path) -> list[Path]:
    """Write a JPEG for each eraser that has runs: the first seed of each concept."""
    by_title: dict[str, dict[str, Run]] = {}
    for one in planned:
        run = one.runs.get("erased")
        if run is not None and not one.recovery:
            name = f"{one.concept} ({one.model})" if one.model != "world" else one.concept
            by_title.setdefault(one.eraser, {}).setdefault(name, run)
    written = []
    for title, runs in by_title.items():
        path = folder / sheet_name(title)
        with whole(path) as part:
            sheet(runs).save(part, format="JPEG", quality=80, optimize=True)
        written.append(path)
    return written


def sheet(runs: dict[str, Run]) -> Image.Image:
    """Return what one eraser did: for each concept the unedited model's pictures above its own.

    Args:
        runs: what a concept is called → its finished run.
    """
    step, head = CELL + GAP, 18
    block = 2 * step + 2 * GAP
    made = Image.new(
        "RGB", (LEFT + (OWN + REST) * step + 4 * GAP, head + len(runs) * block), "white"
    )
    pen = ImageDraw.Draw(made)
    pen.text((LEFT, 2), "asked for what was erased", fill="black")
    pen.text((LEFT + OWN * step + 4 * GAP, 2), "asked for something else", fill="black")
    for i, (name, run) in enumerate(runs.items()):
        top = head + i * block
        before = Run.open(run.folder.parent / (run.record().original or ""))
        own, rest = shown(run)
        for y, (who, one) in enumerate((("unedited", before), ("erased", run))):
            pen.text((4, top + y * step + CELL // 2 - 12), f"{name}\n{who}", fill="black")
            for start, some in ((0, own), (OWN, rest)):
                for x, prompt in enumerate(some, start):
                    left = LEFT + x * step + (4 * GAP if start else 0)
                    with Image.open(one.path(images.picture_name(prompt))) as picture:
                        made.paste(picture.resize((CELL, CELL)), (left, top + y * step))
    return made


def shown(run: Run) -> tuple[list[Prompt], list[Prompt]]:
    """Return the first prompts for the concepts, and some for their own kinds and for others."""
    concepts = run.record().concepts
    kinds = {concept.kind for concept in concepts}
    asked = images.asked(run)
    own = [p for p in asked if any(p.wants(c.kind, c.name) for c in concepts)]
    rest = [p for p in asked if p not in own]
    kin = [p for p in rest if kinds & {*p.asks}] or rest
    other = [p for p in rest if not kinds & {*p.asks}] or rest
    half = REST // 2
    some = [group[k * len(group) // half] for group in (kin, other) if group for k in range(half)]
    return own[:OWN], some
