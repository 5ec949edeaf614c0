"""The table of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from palimpsest.core.legend import KEY as KEY
from palimpsest.core.legend import arrow
from palimpsest.core.legend import headed as headed
from palimpsest.core.legend import legend as legend
from palimpsest.judge import frechet, references
from palimpsest.judge.answers import Answers
from palimpsest.judge.cosine import Cosine
from palimpsest.judge.membership import Membership
from palimpsest.judge.rates import Rates
from palimpsest.judge.zero_shot import ZeroShot
from palimpsest.methods import Number
from palimpsest.metrics import rates, relearning
from palimpsest.metrics.rates import Rate
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material, Target
from palimpsest.report.prose import FIXED, THIN, attempt_label, interval, percent, tried_on

MEANINGS: dict[str, str] = {
    **Rates.meanings,
    **Cosine.meanings,
    **ZeroShot.meanings,
    **Membership.meanings,
    **Answers.meanings,
    **{f"world-FID{which}": meaning for which, meaning in frechet.MEANINGS.items()},
    "FID": "Fréchet distance of two sets of pictures. Lower is closer.",
}
"""What numbers mean whose records are too old to say it."""
RATES = {name: MEANINGS[name] for name in ("UA", "IRA", "CRA")}
"""What stands at a glance."""


ATTEMPTS = {"erased": "recovered", "gold": "taught to gold", "unedited": "on the unedited model"}
"""Whom a recovery was tried on → the small print of its column."""


@dataclass(frozen=True)
class Entry:
    """One number of one run, ready to be shown."""

    text: str
    interval: str = ""
    n: str = ""
    bar: tuple[float, float, float] | None = None
    """Low end, width and value in per cent, for shares."""


@dataclass
class Line:
    """One number across the section's runs; runs with another spec stand on another line."""

    name: str
    spec: str
    meaning: str
    """What it counts; empty where its spec says all."""
    entries: list[Entry | None] = field(default_factory=list)
    again: bool = False
    """Whether the line above is of the same number, by another spec."""

    @property
    def arrow(self) -> str:
        """Which way is good."""
        return arrow(self.name, self.meaning)


def meanings(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return name and meaning of what stands in a table."""
    return [(line.name, line.meaning) for line in lines]


def heads(section: Section) -> list[tuple[Material, str, str]]:
    """Return the section's runs, each with the title and the small print of its column."""
    return [(run, *_head(run, section)) for run in section.runs]


def _head(run: Material, section: Section) -> tuple[str, str]:
    if run is section.original:
        return "original", "unedited"
    if run is section.erasure:
        return run.title, "erased"
    if run is section.gold:
        return "gold", "never knew it"
    if run.record.source is not None:
        return run.title, tried_on(run)
    for attempt, among, on in section.attempts:
        if run is attempt:
            return attempt_label(run, among), ATTEMPTS[on]
    return run.title, run.kind


def lines(section: Section) -> list[Line]:
    """Return the section's numbers: first what its scores say, then those of the records."""
    table: dict[tuple[str, str], Line] = {}
    runs = section.runs
    for i, run in enumerate(runs):
        took = costs(run) if run.record.patch_bytes or run.answered else []
        for row in [*_shown(run, section.target), *run.record.each, *took]:
            meaning = row.meaning or MEANINGS.get(row.name.partition(",")[0], "")
            key = (row.name, row.spec)
            line = table.setdefault(key, Line(*key, meaning, [None] * len(runs)))
            line.entries[i] = entry(row)
    by_name: dict[str, list[Line]] = {}
    for line in table.values():
        line.again = line.name in by_name
        by_name.setdefault(line.name, []).append(line)
    return [line for some in by_name.values() for line in some]


def _shown(run: Material, target: Target) -> list[Number]:
    rate = run.shown(target)
    if not rate.n or run.answered:  # the record says it, with the prompts that it holds for
        return []
    judge = run.record.judge or references.Entry("judge")
    said = f"{judge.name} v{judge.version or '?'}, {' and '.join(target.kinds)} head"
    return [replace(Number.of("Concept shown", rate), spec=said)]


def costs(run: Material) -> list[Number]:
    """Return what an edit or an attack took."""
    record = run.record
    size = (record.patch_bytes or 0) / 1000 or None
    gpu = max(record.gpu_memory_mb.values(), default=None)
    rows = [
        ("Edit norm", record.edit_norm, "", "Frobenius norm of all shifts together"),
        ("Lost in rounding", record.lost_in_rounding, "%", f"of the norm, to {record.model.dtype}"),
        ("Training time", record.seconds.get("train"), "s", f"on {record.device or 'cpu'}"),
        ("Peak memory", record.peak_memory_mb, "MB", "above what the libraries take"),
        ("Peak memory on the GPU", gpu, "MB", "tensors of PyTorch"),
        ("Patch", size, "kB", "the edit as a file"),
        ("Gradient evaluations", record.evaluations or None, "", "latents, or per prompt"),
        ("Queries", record.queries or None, "", "pictures that it had judged on its way"),
    ]
    return [Number(n, v, unit=u, spec=s) for n, v, u, s in rows if v is not None]


def entry(row: Number) -> Entry:
    """Return a number as text; `–` where it is not a number."""
    found, low, high = row.value, row.low, row.high
    counts = [f"n = {row.n}"] * bool(row.n) + [f"{row.missing} not judged"] * bool(row.missing)
    n = ", ".join(counts)
    if math.isnan(found):
        return Entry("–", "", n)
    if row.unit == "%":
        bar = None if math.isnan(low + high) else (100 * low, 100 * (high - low), 100 * found)
        return Entry(percent(found), interval(low, high), n, bar)
    unit = f"{THIN}{row.unit}" if row.unit else ""
    none = "too few" if rates.too_few(row.n, found, low) else ""
    between = none if math.isnan(low + high) else f"[{low:.3g}, {high:.3g}]"
    digits = f"{found:,.0f}" if found >= 1000 else f"{found:.3g}"
    return Entry(f"{digits}{unit}", between, n)


def against_gold(section: Section, run: Material) -> list[tuple[int, list[Entry], Entry]]:
    """Return a recovery and its twin on gold at every step: both, and the difference."""
    twin = section.twin(run)
    if twin is None:
        return []
    ours, theirs = run.record.curve, twin.record.curve
    by_step = [{p.step: Number.of("", p.rate) for p in curve} for curve in (ours, theirs)]
    return [
        (step, [entry(curve[step]) for curve in by_step], points(rate))
        for step, rate in relearning.at_each_step(ours, theirs)
    ]


def points(rate: Rate) -> Entry:
    """Return a difference of two shares, in points of per cent."""
    low, high = (f"{100 * end:+.0f}" for end in (rate.low, rate.high))
    return Entry(f"{100 * rate.value:+.0f} points", f"[{low},{FIXED}{high}]", f"n = {rate.n}")


def arguments(run: Material) -> list[tuple[str, str, bool]]:
    """Name, value, and whether a person gave it."""
    return [
        (k, v if isinstance(v, str) else json.dumps(v), k in run.record.given)
        for k, v in run.record.arguments.items()
    ]
