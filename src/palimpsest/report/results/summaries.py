"""Rows of runs that differ in their seed alone, as one number each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from palimpsest.metrics import seeds
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.seeds import OverSeeds
from palimpsest.report.results.rows import About, Row

ONE = "rests on one seed"
"""The note of a number that another seed might change and none was tried."""
ONE_ERASURE = "rests on one erasure"
"""The note of several attacks on one erasure that another seed might change."""


@dataclass(frozen=True, kw_only=True)
class Summary(About):
    """One number over the seeds of a variant; `value`, `low` and `high` are those of the mean."""

    seeds: int = 0
    """How many there were; 0 of what has none, such as the unedited model."""
    seed_list: str = ""
    """Which they were: `0, 1, 2`."""
    runs: tuple[str, ...] = ()
    """The folders' names."""
    sd_seeds: float = math.nan
    """How far one seed's number lies from that of all: standard deviation of seeds."""
    sd_pictures: float = math.nan
    """How much pictures differ whatever the seed."""
    sd_rest: float = math.nan
    """How much a picture differs with the seed."""
    of_seeds: float = math.nan
    """Share of the mean's variance that more seeds would take away."""
    note: str = ""
    """`rests on one seed`, or what else is to be said of it."""
    seconds: float | None = None
    """Of training, mean over the runs."""
    memory_mb: float | None = None
    evaluations: int = 0
    """Gradient evaluations of a run, at most."""
    commits: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """Column → value; what is several is joined."""
        return {
            name: "; ".join(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in SUMMARY_COLUMNS
        }


SUMMARY_COLUMNS = tuple(f.name for f in fields(Summary))
"""The columns of summaries, in their order."""


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Return a summary for each variant, judge and measure, in the order of the rows.

    A run with one seed of its own subject's counts once, the last one made. Where recoveries
    attacked erasures of several seeds, those seeds are what is counted, and what was tried on one
    of them with several seeds is its mean.
    """
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.variant, row.on, row.spec, row.judge, row.measure, row.concept].append(row)
    return [_summary(_once(group)) for group in groups.values()]


def _once(rows: Sequence[Row]) -> list[Row]:
    last = {(row.subject_seed, row.seed): row for row in sorted(rows, key=lambda r: r.started)}
    return sorted(last.values(), key=lambda r: (r.subject_seed or 0, r.seed or 0))


def _summary(rows: Sequence[Row]) -> Summary:
    first = rows[0]
    units = _units(rows)
    found = _over(list(units.values()))
    rate = found.rate
    common: dict[str, Any] = {f.name: getattr(first, f.name) for f in fields(About)}
    common |= {name: getattr(rate, name) for name in ("value", "low", "high", "n", "missing")}
    seeded = [seed for seed in units if seed is not None]
    return Summary(
        **common,
        seeds=len(seeded),
        seed_list=", ".join(map(str, seeded)),
        runs=tuple(dict.fromkeys(row.run for row in rows)),
        sd_seeds=found.sd_seeds,
        sd_pictures=found.sd_pictures,
        sd_rest=found.sd_rest,
        of_seeds=found.of_seeds,
        note=ONE if len(seeded) == 1 else _of_one(rows, len(seeded)),
        seconds=_mean([row.seconds for row in rows]),
        memory_mb=max((r.memory_mb for r in rows if r.memory_mb is not None), default=None),
        evaluations=max(row.evaluations for row in rows),
        commits=tuple(dict.fromkeys(row.commit for row in rows if row.commit)),
        commands=tuple(dict.fromkeys(row.command for row in rows if row.command)),
    )


def _units(rows: Sequence[Row]) -> dict[int | None, list[Row]]:
    """Return the rows of each seed that is counted."""
    several = len({row.subject_seed for row in rows}) > 1
    units: dict[int | None, list[Row]] = defaultdict(list)
    for row in rows:
        own = row.subject_seed if several or row.seed is None else row.seed
        units[own].append(row)
    return units


def _of_one(rows: Sequence[Row], seeds: int) -> str:
    """Return the note of attacks with several seeds on one erasure; empty of all else."""
    one = {row.subject_seed for row in rows}
    return ONE_ERASURE if seeds > 1 and len(one) == 1 and None not in one else ""


def _over(units: Sequence[Sequence[Row]]) -> OverSeeds:
    """Return the number over seeds, by pictures where those of all runs are known and the same."""
    rows = [row for unit in units for row in unit]
    if len(rows) == 1:
        row = rows[0]
        return OverSeeds(Rate(row.value, row.low, row.high, row.n, row.missing), 1)
    keys = [key for key, *_ in rows[0].judged]
    said = [{key: good for key, _, good in row.judged} for row in rows]
    if keys and all(own.keys() == set(keys) and len(own) == len(keys) for own in said):
        clusters = [cluster for _, cluster, _ in rows[0].judged]
        by_row = dict(zip(map(id, rows), said, strict=True))
        table = [[_share([by_row[id(row)][key] for row in unit]) for key in keys] for unit in units]
        return seeds.share(table, clusters)
    within = (0.0, 1.0) if rows[0].share else (0.0 if rows[0].took else -math.inf, math.inf)
    each = [Rate(r.value, r.low, r.high, r.n, r.missing) for r in rows]
    if len(each) == len(units):
        return seeds.over_runs(each, within)
    return seeds.over_runs([_pooled([r for r in unit]) for unit in units], within)


def _pooled(unit: Sequence[Row]) -> Rate:
    """Return the mean of what was tried on one subject, and of its intervals' ends."""
    ends = ([getattr(row, name) for row in unit] for name in ("value", "low", "high"))
    value, low, high = (sum(some) / len(some) for some in ends)
    return Rate(value, low, high, min(r.n for r in unit), max(r.missing for r in unit))


def _share(said: Sequence[bool | None]) -> float | None:
    return None if None in said else sum(map(bool, said)) / len(said)


def _mean(values: Sequence[float | None]) -> float | None:
    seen = [value for value in values if value is not None]
    return sum(seen) / len(seen) if seen else None
