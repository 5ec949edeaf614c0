"""The site's figures: what forgetting costs, how fast it comes back, and which concepts suffer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palimpsest.methods import Number
from palimpsest.report.arrange import Section
from palimpsest.report.charts import (
    GREY,
    Axis,
    Bar,
    Dot,
    Level,
    Look,
    Series,
    bars,
    front,
    lines,
    look,
    scatter,
)
from palimpsest.report.load import Material
from palimpsest.report.prose import attempt_label, percent, with_interval
from palimpsest.report.sections.figures import EVALUATIONS, SHARE, points
from palimpsest.report.site.board import Line
from palimpsest.report.site.kept import Kept

if TYPE_CHECKING:
    from markupsafe import Markup

FORGETS = Axis("forgets: UA, the share that no longer shows it", unit="%")
KEEPS = Axis("keeps: mean of IRA and CRA", unit="%")
SMALL, LARGE = 0.7, 2.0
"""Widths of the marks of methods of which everything, and of which nothing was brought back."""
GOLD, UNEDITED = Look(GREY, "diamond", "dash"), Look(GREY, "square", "dot")


@dataclass(frozen=True)
class Pareto:
    """What methods forget, keep and resist, by one judge on one model."""

    model: str
    judge: str
    kind: str
    """The kind of concepts that it is over; empty of all."""
    concept_group: str
    """The campaign's group that they are in; empty of all."""
    second: bool
    svg: Markup
    best: tuple[str, ...]
    """Methods that no other beats in all three."""


def paretos(groups: Sequence[tuple[str, str]], methods: Sequence[Line]) -> list[Pareto]:
    """Return a chart for each model and judge, over all concepts and over each kind and group."""
    found: dict[tuple[str, str, str, str], list[Line]] = {}
    for line in methods:
        if "UA" in line.numbers and line.kept:
            of, among = line.scope or ("", "")
            found.setdefault((*line.group, of, among), []).append(line)
    order = {group: i for i, group in enumerate(groups)}
    some = sorted(found.items(), key=lambda item: order[item[0][0], item[0][1]])
    return [_pareto(*key, each) for key, each in some]


def _pareto(model: str, judge: str, kind: str, group: str, methods: Sequence[Line]) -> Pareto:
    best = [line for line in methods if not any(beats(other, line) for other in methods)]
    names = [line.method for line in methods]
    dots = [_dot(line, names.count(line.method) > 1, line in best) for line in methods]
    about = f" ({', '.join(filter(None, (kind, group)))})" if kind or group else ""
    title = f"What methods forget and keep{about}"
    svg = scatter(dots, title=title, x=FORGETS, y=KEEPS, fronts=[front(dots)])
    second = all(line.second for line in methods)
    told = tuple(line.method for line in best)
    return Pareto(model, judge, kind, group, second, svg, told)


def beats(one: Line, other: Line) -> bool:
    """Return whether a method is at least as good in all that was measured of both, and better."""
    sides = [(_value(a), _value(b)) for a, b in zip(_sides(one), _sides(other), strict=True)]
    known = [(a, b) for a, b in sides if not math.isnan(a + b)]
    return all(a >= b for a, b in known) and any(a > b for a, b in known)


def _sides(line: Line) -> tuple[Number | None, ...]:
    return line.numbers.get("UA"), line.kept, line.resists


def _value(number: Number | None) -> float:
    return number.value if number else math.nan


def _dot(line: Line, twice: bool, ringed: bool) -> Dot:
    ua, kept, resists = line.numbers["UA"], line.kept or line.numbers["UA"], line.resists
    told = [f"forgets {with_interval(ua)}", f"keeps {with_interval(kept)}"]
    if resists:
        told.append(f"resists {with_interval(resists)} ({line.best})")
    else:
        told.append("no recovery was tried")
    return Dot(
        x=100 * ua.value,
        y=100 * kept.value,
        label=f"{line.method} ({line.note})" if twice and line.note else line.method,
        x_low=100 * ua.low,
        x_high=100 * ua.high,
        y_low=100 * kept.low,
        y_high=100 * kept.high,
        size=SMALL + (LARGE - SMALL) * resists.value if resists else 1.0,
        hollow=resists is None,
        ringed=ringed,
        told="\n".join(told),
    )


def curves(sections: Sequence[Section]) -> list[tuple[str, Markup]]:
    """Return a chart for each recovery of a concept, with all models that it was tried on."""
    found: dict[str, dict[str, Series]] = {}
    bases: dict[str, Level] = {}
    kinds: dict[str, list[str]] = {}
    for section in sections:
        for run, among, on in section.attempts:
            if run.curve and run.record.evaluations:
                kind = json.dumps([run.record.method, run.record.arguments], sort_keys=True)
                label = attempt_label(run, among)
                variants = kinds.setdefault(label, [])
                variants += [kind] * (kind not in variants)
                which = variants.index(kind)
                name = f"{section.target.brief}: {label}{f', variant {which + 1}' if which else ''}"
                series = found.setdefault(name, {})
                series.setdefault(run.run.name, _series(run, section, on, len(series)))
                _base(section, bases, name)
    return [
        (name, _curves(name, [*series.values()], bases.get(name))) for name, series in found.items()
    ]


def _series(run: Material, section: Section, on: str, i: int) -> Series:
    if on == "gold":
        return Series("gold, which never knew it", points(run.curve), GOLD)
    if on == "unedited" or section.erasure is None:
        return Series("the unedited model", points(run.curve), UNEDITED)
    seed = section.erasure.record.seed
    name = section.erasure.title + (f", seed {seed}" if seed else "")
    return Series(name, points(run.curve), look(i))


def _base(section: Section, bases: dict[str, Level], name: str) -> None:
    shown = section.original.shown(section.target) if section.original else None
    if shown and shown.n:
        told = f"{percent(shown.value)}\nn = {shown.n}"
        bases.setdefault(name, Level("unedited, before anything", 100 * shown.value, told))


def _curves(name: str, series: Sequence[Series], base: Level | None) -> Markup:
    levels = [base] if base else []
    title = f"Relearning, {name}"
    return lines(series, title=title, x=EVALUATIONS, y=SHARE, levels=levels)


def others(found: Sequence[Kept], title: str) -> Markup:
    """Return a bar for each concept that was not to be forgotten."""
    return bars([_bar(each) for each in found], title=title, before="the unedited model")


def _bar(each: Kept) -> Bar:
    ends = [100 * v for v in (each.share.value, each.share.low, each.share.high)]
    before = 100 * each.before.value if each.before else math.nan
    note = f"{each.kind}, n = {each.share.n}"
    return Bar(each.name, *ends, before=before, note=note, text=with_interval(each.share))
