"""The relearning curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from palimpsest.metrics.relearning import CurvePoint
from palimpsest.report.arrange import Section
from palimpsest.report.charts import Axis, Level, Look, Point, Series, lines
from palimpsest.report.load import Material
from palimpsest.report.prose import ARMS, interval, percent

if TYPE_CHECKING:
    from markupsafe import Markup

LOOKS = {"erased": (2, "circle"), "gold": (5, "diamond"), "unedited": (1, "square")}
"""Whose curve it is, by hue and by mark."""
DASHES = ("solid", "dash", "dashdot", "longdash", "dot")
"""Which recovery it is."""
SHARE = Axis(low=-3, high=103, unit="%")
EVALUATIONS = Axis("gradient evaluations of the recovery")


def curve_label(run: Material, section: Section, on: str) -> str:
    """Return which recovery, from which pictures, on which model."""
    arm = run.record.arm
    pictures = f", {ARMS.get(arm, arm)}" if arm else ""
    erased = section.erasure.title if section.erasure and run.record.subject else None
    known = "gold, which never knew it" if on == "gold" else erased or "the unedited model"
    return f"{run.title}{pictures}, on {known}"


def curve(section: Section) -> Markup | None:
    """Return the relearning curves of a section's recoveries; None if no run has one."""
    attempts = [(run, on) for run, _, on in section.attempts if run.curve]
    if not attempts:
        return None
    kinds = list(dict.fromkeys(_kind(run) for run, _ in attempts))
    series = [
        Series(
            curve_label(run, section, on),
            points(run.curve),
            Look(*LOOKS[on], DASHES[kinds.index(_kind(run)) % len(DASHES)]),
        )
        for run, on in attempts
    ]
    base = section.original.shown(section.target) if section.original else None
    levels = []
    if base and base.n:
        told = f"{percent(base.value)}\nn = {base.n}"
        levels = [Level("the unedited model, before anything", 100 * base.value, told)]
    title = f"Relearning curves of {section.target.brief}"
    return lines(series, title=title, x=EVALUATIONS, y=SHARE, levels=levels)


def points(curve: Sequence[CurvePoint]) -> list[Point]:
    """Return a relearning curve's shares in per cent over the gradient evaluations spent."""
    return [
        Point(
            p.evaluations,
            100 * p.rate.value,
            100 * p.rate.low,
            100 * p.rate.high,
            f"{percent(p.rate.value)} {interval(p.rate.low, p.rate.high)}".strip()
            + f"\nstep {p.step} · n = {p.rate.n}",
        )
        for p in curve
    ]


def _kind(run: Material) -> str:
    """Return what tells one recovery from another, whomever it is of."""
    return json.dumps([run.record.method, run.record.arguments], sort_keys=True)
