"""Methods side by side as data for the index, computed once for what judges said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.results.rows import settings
from palimpsest.report.sections.compared import Comparison, comparable, compare

NAME = "paired.json"
"""Where comparisons are kept: a digest of what was compared → a comparison as data."""
PARTS = ("concept", "spec", "methods", "numbers", "pairs")


def groups(sections: Sequence[Section]) -> list[list[Material]]:
    """Return the erasures of each concept to compare: of each choice of settings the first seed."""
    found = []
    for runs in comparable(sections):
        firsts: dict[tuple[str, str], Material] = {}
        for run in sorted(runs, key=lambda run: (run.record.seed or 0, run.record.started)):
            firsts.setdefault((run.title, settings(run.record)), run)
        if len(firsts) > 1:
            found.append(sorted(firsts.values(), key=lambda run: (run.title, run.run.name)))
    return found


def comparisons(
    those: Sequence[Sequence[Material]], kept: Path, advance: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Return each group's comparison by a digest of what it rests on.

    Args:
        those: groups of erasures.
        kept: a file with comparisons that were computed before, if there is one.
        advance: is called after each group.
    """
    before: dict[str, Any] = {}
    with suppress(PalimpsestError):
        before = read_object(kept)
    found = {}
    for runs in those:
        key = digest(runs)
        old = before.get(key)
        fits = isinstance(old, dict) and tuple(old) == PARTS
        found[key] = old if fits else plain(compare(runs))
        advance(1)
    return found


def digest(runs: Sequence[Material]) -> str:
    """Return a digest of all that a comparison of runs rests on."""
    parts = [
        (run.run.name, run.title, str(run.record.judge), key, sorted(picture.labels.items()))
        for run in runs
        for key, picture in run.pictures.items()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def plain(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as data for the page: a pair as a short list."""
    place = {name: i for i, name in enumerate(comparison.methods)}
    pairs = []
    for pair in comparison.pairs:
        rate = pair.difference.rate
        ends = (round(x, 4) for x in (rate.value, rate.low, rate.high))
        chances = (round(p, 5) for p in (pair.difference.p, pair.corrected))
        pairs.append([place[pair.ours], place[pair.theirs], pair.number, *ends, *chances])
    meanings = [[name, said.partition(". ")[0]] for name, said in comparison.meanings.items()]
    parts = (comparison.concept, comparison.spec, list(comparison.methods), meanings, pairs)
    return dict(zip(PARTS, parts, strict=True))
