"""Relearning curves of a campaign's attacks, each on the erased model beside gold."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.cli.bench.planner import Planned
from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.report import forms
from palimpsest.runs.folder import Run

SUBJECTS = {"erased": "on the erased model", "gold": "on gold", "unedited": "on the unedited model"}
ABOVE = "erased above gold"


def told(planned: Sequence[Planned]) -> list[str]:
    """Return a table for each attack: how often the concept is shown after so many steps.

    Of several seeds the first one's is shown.
    """
    text: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for one in planned:
        key = one.attack, one.eraser, one.model, one.concept
        runs = one.runs if one.recovery and key not in seen else {}
        subjects = {who: runs[who] for who in SUBJECTS if who in runs}
        if "erased" in subjects and len(subjects["erased"].record().curve) > 1:
            seen.add(key)
            text += ["", f"### {one.work.title}", "", *_table(subjects)]
    return ["## Curves", *text, ""] if text else []


def _table(subjects: dict[str, Run]) -> list[str]:
    curves = {who: run.record().curve for who, run in subjects.items()}
    by_step = {who: {p.step: p.rate for p in curve} for who, curve in curves.items()}
    above = {}
    if "gold" in curves:
        above = dict(relearning.at_each_step(curves["erased"], curves["gold"]))
    heads = ["step", *(SUBJECTS[who] for who in curves), *([ABOVE] if above else [])]
    rows = []
    for step in by_step["erased"]:
        cells = [share(by_step[who].get(step)) for who in curves]
        rows.append([str(step), *cells, *([points(above.get(step))] if above else [])])
    lines = forms.markdown(heads, rows)
    found = relearning.advantage(curves["erased"], curves["gold"]) if above else None
    if found is not None:
        lines += ["", f"Relearning advantage, the area between the curves: {points(found)}."]
    return lines


def share(rate: Rate | None) -> str:
    """Return a rate in per cent with its interval."""
    if rate is None or rate.value != rate.value:
        return "–"
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def points(rate: Rate | None) -> str:
    """Return a difference in points with its interval."""
    if rate is None or rate.value != rate.value:
        return "–"
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    return f"**{value:+.1f}** [{low:+.1f}, {high:+.1f}]"
