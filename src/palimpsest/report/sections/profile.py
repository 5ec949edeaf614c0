"""How long an erasure holds under each recovery: the report's forgetting profile."""

from __future__ import annotations

import math
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.metrics import profile as forgetting
from palimpsest.metrics.profile import Attack
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.prose import attempt_label
from palimpsest.report.sections.table import Entry


def profile(section: Section) -> dict[str, Any] | None:
    """Return a row a recovery at one budget, and the verdict; None if none measured a curve."""
    attacks = [_attack(run, section) for run in section.recoveries if run.record.curve]
    try:
        budget = forgetting.shared_budget(attacks)
    except PalimpsestError:  # none spent anything
        return None
    lines = forgetting.profile(attacks, budget)
    if not section.erasure or not lines:
        return None
    return {"budget": f"{budget:,}", "lines": lines, "verdict": forgetting.verdict(lines)}


def _attack(run: Material, section: Section) -> Attack:
    twin, control = section.twin(run), section.control(run)
    curves = [m.record.curve if m else () for m in (run, twin, control)]
    return Attack(attempt_label(run, section.recoveries), *curves, original=_original(run, section))


def _original(run: Material, section: Section) -> float:
    """Return the unedited model's accuracy where this recovery was not run on it."""
    if run.answered:
        shown = [row.value for row in run.record.baseline if row.name == "Concept shown"]
        return shown[0] if shown else math.nan
    rate = section.original.shown(section.target) if section.original else None
    return rate.value if rate and rate.n else math.nan


def when(reached: forgetting.Reached) -> Entry | None:
    """When a share was back, as text; None where nobody knows it."""
    if math.isnan(reached.evaluations):
        return None
    return Entry(reached.said(reached.evaluations), reached.interval)
