"""Numbers and verdicts in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from palimpsest.methods import Number
from palimpsest.metrics.rates import Rate
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material

THIN, FIXED = "\u202f", "\u00a0"  # no-break spaces, narrow and full

LONG = 60
"""Letters of settings that a name has room for."""

ARMS = {"published": "published pictures", "plain": "plain pictures"}


def percent(share: float) -> str:
    """Return a share as a percentage; never rounded up to all or down to nothing."""
    whole = f"{100 * share:.0f}"
    if (whole == "100" and share < 1) or (whole == "0" and share > 0):
        whole = f"{100 * share:.1f}"
    return f"{whole}{THIN}%"


def interval(low: float, high: float) -> str:
    """Return a 95 % interval of a share, in per cent: `[90, 99]`; empty if there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{100 * low:.0f},{FIXED}{100 * high:.0f}]"


def chance(p: float) -> str:
    """Return a p-value in words; never down to nothing."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def with_interval(row: Number | Rate) -> str:
    """Return a share with its interval: `97 % [90, 99]`."""
    return f"{percent(row.value)} {interval(row.low, row.high)}".strip()


def second_opinions(run: Material) -> list[str]:
    """Return what each other judge says of an erasure, and how far it agrees with the first."""
    record, found = run.record, []
    for judge in record.judges:
        ua = record.number(f"UA, by {judge.name}")
        agreed = [
            n for n in record.numbers if n.name.startswith("κ, ") and f"; {judge.name} v" in n.spec
        ]
        if ua:
            kappa = next((_kappa(n) for n in agreed if n.value == n.value), "")
            found.append(f"{judge.name}, no longer sees it in {with_interval(ua)}{kappa}")
    return found


def _kappa(row: Number) -> str:
    between = "" if math.isnan(row.low) else f" [{row.low:.2f},{FIXED}{row.high:.2f}]"
    return f" and agrees with the first to κ {row.value:.2f}{between}"


def last(run: Material) -> tuple[Number | None, int | None]:
    """Return what a recovery ended with, and after how many steps (None if it has no curve)."""
    if run.curve:
        return Number.of("Concept shown", run.curve[-1].rate), run.curve[-1].step
    rate = run.shown(run.target)
    return (Number.of("Concept shown", rate) if rate.n else None), None


def attempt_label(run: Material, among: Sequence[Material] = ()) -> str:
    """Return a recovery's name; how its pictures were made is said where it tells two apart."""
    arm = run.record.arm
    alone = not among or len({r.record.arm for r in among}) < 2
    return run.title if alone or not arm else f"{run.title} ({ARMS.get(arm, arm)})"


def apart(run: Material, among: Sequence[Material]) -> str:
    """Return the settings that tell a run from the others, or else the end of its folder's name.

    Args:
        run: one of `among`.
        among: runs of one method; nothing tells a run from itself alone.
    """
    if len(among) < 2:
        return ""
    settings = {m.run.name: _settings(m) for m in among}
    told = {name: _differing(own, settings.values()) for name, own in settings.items()}
    own = told[run.run.name]
    clear = own and [*told.values()].count(own) == 1 and len(own) <= LONG
    return own if clear else run.run.name.rpartition("-")[2]


def _settings(run: Material) -> dict[str, str]:
    """Return all by which two runs of one method can differ, as text."""
    record = run.record
    found: dict[str, Any] = {}
    for name, value in record.arguments.items():
        nested = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{k}".rstrip("."): v for k, v in nested.items()}
    judge = record.judge.name if record.judge else "none"
    found |= {"seed": record.seed, "model": run.model, "judge": judge}
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in found.items()}


def _differing(own: Mapping[str, str], every: Iterable[Mapping[str, str]]) -> str:
    others = list(every)
    differ = [name for name, v in own.items() if any(o.get(name, v) != v for o in others)]
    return ", ".join(f"{name} {own[name]}" for name in differ)


def tried_on(replay: Material) -> str:
    """Return on which model a find was tried."""
    subject = replay.record.subject
    return f"tried on {subject.split('-')[0]}" if subject else "tried on the unedited model"


def in_part(share: float) -> str:
    """Return what stands behind *forgot* where much of it is gone, but not all."""
    return " in part" if 0.3 <= share < 0.8 else ""


def headline(section: Section) -> str:
    """Return what happened, in one line."""
    concept, lead = section.target.brief, section.lead
    if section.erasure:
        erased = lead.record.number("UA")
        verb = "and" if erased is None else "erased" if erased.value >= 0.3 else "did not erase"
        part = in_part(erased.value) if erased else ""
        return f"{lead.title} {verb} {concept}{part}{_came_back(section)}"
    if lead.record.theme:
        return f"{lead.record.asked}, asked of {len(section.others)} models"
    if section.recoveries:
        return f"{section.recoveries[0].title} and {concept}"
    return lead.title if concept else f"What {lead.model} shows"


def _came_back(section: Section) -> str:
    end, run = best(section)
    if not end or not run:
        return ""
    if end.value >= 0.5:
        return f", and {run.title} brought it back"
    done = "brought some of it back" if end.value >= 0.2 else "could not bring it back"
    return f", and {run.title} {done}"


def best(section: Section) -> tuple[Number | None, Material | None]:
    """Return what the recovery that brought most back ended with, and which it is."""
    ends = [(end, run) for run in section.recoveries if (end := last(run)[0])]
    return max(ends, key=lambda pair: pair[0].value, default=(None, None))
