"""What methods draw where they were asked for what they erased: a few prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.results.rows import settings
from palimpsest.report.sections import grid
from palimpsest.report.site.board import Names

PROMPTS = 3
"""Rows of a concept."""


@dataclass(frozen=True)
class Strip:
    """A few prompts that ask for a concept, drawn by the unedited model and by every method."""

    concept: str
    runs: list[str]
    """The run of each column."""
    block: grid.Block


def strips(
    sections: Sequence[Section],
    groups: Sequence[Sequence[Material]],
    names: Names,
) -> list[Strip]:
    """Return a strip for each group of erasures of one concept.

    Rows are chosen by order, each of another style or wording, and never by looks.

    Args:
        sections: what belongs together.
        groups: erasures of one concept, by as many methods, on the same prompts.
        names: the names of choices of settings.
    """
    homes = {s.erasure.run.name: s for s in sections if s.erasure}
    return [_strip(runs, homes[runs[0].run.name].original, names) for runs in groups]


def _strip(runs: Sequence[Material], original: Material | None, names: Names) -> Strip:
    target = runs[0].target
    asked = [p for p in runs[0].pictures.values() if target.asked(p)]
    kinds = target.kinds
    picked = grid.spread(
        asked,
        PROMPTS,
        lambda p: str({k: v for k, v in p.asks.items() if k not in kinds}) or p.prompt,
        lambda p: 0,
    )
    before = original if original and any(p.key in original.pictures for p in picked) else None
    columns = [grid.Column("original", "unedited", before.pictures)] if before else []
    columns += [grid.Column(*names[run.title, settings(run.record)], run.pictures) for run in runs]
    shown = [before, *runs] if before else runs
    block = grid.block_of(target.brief, "", picked, columns, target)
    return Strip(target.brief, [run.run.name for run in shown], block)
