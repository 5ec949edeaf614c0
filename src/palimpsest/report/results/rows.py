"""A row for every number of every run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from palimpsest.core.legend import arrow
from palimpsest.core.typed import plain
from palimpsest.erase import ERASERS
from palimpsest.judge import spec_text
from palimpsest.judge.references import Entry
from palimpsest.methods import Number
from palimpsest.metrics import rates
from palimpsest.metrics.clusters import Cluster
from palimpsest.recover import RECOVERIES
from palimpsest.report.arrange import expand
from palimpsest.report.load import Material, Picture, Target, read
from palimpsest.report.sections.table import MEANINGS, costs
from palimpsest.runs.folder import Run
from palimpsest.runs.groups import titled
from palimpsest.runs.record import Record

SHOWN = "Concept shown"
"""The share of the pictures asked for the concept that show it: every judged run has it."""
WAYS = {"↑": "high", "↓": "low"}

Cell = tuple[Any, Cluster, bool | None]
"""A judgement: what tells it from a run's others, its prompt and noise, and whether it counts."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a number is of. Texts are empty where a thing does not apply."""

    kind: str = ""
    """Of the run: `erase`, `recover`, `evaluate`, `clip` or `llava`; `original` of the unedited
    model's numbers beside an erasure."""
    method: str = ""
    """The method's name on the command line."""
    title: str = ""
    """The method's name for people, or the subject's of an evaluation."""
    preset: str = ""
    settings: str = ""
    """Digest of the method and all its settings, whatever the concept, the model and the seed."""
    variant: str = ""
    """Digest of all that a run is made of but its seed: runs that share it differ in seed alone."""
    model: str = ""
    """Its name; of one in a folder that folder's, wherever it lies."""
    identity: str = ""
    """Fingerprint of the model's weights."""
    base: str = ""
    """Which files of it were read, where a person said."""
    concepts: str = ""
    """What was erased or brought back: names with commas between."""
    kinds: str = ""
    """Their kinds, each once."""
    prompts: str = ""
    """Digest of the prompts and of what they ask for."""
    on: str = ""
    """Which model the number is of: `erased`, `gold` (never knew the concept) or `unedited`; of a
    recovery, which one it attacked."""
    subject_method: str = ""
    """Of a recovery: the method of the erasure that it attacked."""
    subject_title: str = ""
    subject_settings: str = ""
    judge: str = ""
    """Who measured it: a judge's or a CLIP's name, two with `; ` between where they are compared;
    empty where nobody looked."""
    measure: str = ""
    """What was measured, without the judge's name."""
    concept: str = ""
    """The one concept that the number is over; empty of one over all."""
    value: float = float("nan")
    low: float = float("nan")
    """Lower end of the 95 % interval; NaN where it has none."""
    high: float = float("nan")
    n: int = 0
    """Pictures that it is over."""
    missing: int = 0
    """Pictures that could not be judged; they are no part of `n`."""
    unit: str = ""
    """`%` of a share from 0 to 1."""
    spec: str = ""
    """What measured it, and how the pictures were drawn; different specs are never pooled."""
    meaning: str = ""
    better: str = ""
    """Which way is good in an erasure: `high`, `low` or empty."""

    @property
    def share(self) -> bool:
        """Whether it is a share from 0 to 1."""
        return self.unit == "%"

    @property
    def took(self) -> bool:
        """Whether it is what a run took, which nobody judged and no picture decides."""
        return not self.judge and not self.n


@dataclass(frozen=True, kw_only=True)
class Row(About):
    """One number of one run."""

    run: str = ""
    """The folder's name."""
    folder: str = ""
    seed: int | None = None
    """Of the run; None of the unedited model, and of what is the same with every seed."""
    subject: str = ""
    """The erasing run that a recovery attacked."""
    subject_seed: int | None = None
    seconds: float | None = None
    """Of training."""
    memory_mb: float | None = None
    """Peak above what the libraries take."""
    evaluations: int = 0
    """Gradient evaluations that a recovery spent."""
    commit: str = ""
    command: str = ""
    started: str = ""
    judged: tuple[Cell, ...] = field(default=(), repr=False, compare=False)
    """What the judge said of each picture, where the number is a share of that; no column."""

    @property
    def data(self) -> dict[str, Any]:
        """Column → value."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(f.name for f in fields(Row) if f.name != "judged")
"""The columns of rows, in their order."""


def rows(paths: Sequence[Path]) -> list[Row]:
    """Return a row for every number of the finished runs in some folders.

    Args:
        paths: run folders, or folders that hold runs.

    Raises:
        PalimpsestError: no run lies there, or one cannot be read.
    """
    return rows_of([read(folder) for folder in expand(paths) if not _original(folder)])


def rows_of(runs: Iterable[Material]) -> list[Row]:
    """Return the rows of runs that were read; each run counts once."""
    by_name = {m.run.name: m for m in runs if m.kind != "original"}
    shelf = _Shelf(by_name)
    found = [row for m in by_name.values() for row in _of_run(m, shelf)]
    return [*found, *_unedited(by_name.values())]


def _original(folder: Path) -> bool:
    """Return whether a run is that of the unedited model, whose numbers stand in erasures."""
    return Run.open(folder).record().kind == "original"


@dataclass
class _Shelf:
    """The records of runs and of what they name."""

    runs: Mapping[str, Material]
    found: dict[Path, Record | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.golds = {m.record.gold for m in self.runs.values() if m.record.gold}

    def beside(self, run: Run, name: str | None) -> Record | None:
        """Return the record of a run that another one names; None where it is not there."""
        if not name:
            return None
        if name in self.runs:
            return self.runs[name].record
        folder = run.folder.absolute().parent / name
        if folder not in self.found:
            there = (folder / "run.json").is_file()
            self.found[folder] = titled(Run.open(folder)) if there else None
        return self.found[folder]

    def on(self, m: Material) -> str:
        """Return which model a run's numbers are of."""
        record = m.record
        if m.kind == "recover":
            golds = {record.gold, *self.golds}
            gold = record.subject in golds
            return "unedited" if record.subject is None else "gold" if gold else "erased"
        if m.kind == "evaluate":
            return "erased" if record.patches else "unedited"
        return "gold" if m.run.name in self.golds else "erased"

    def variant(self, run: Run, record: Record, above: frozenset[str] = frozenset()) -> str:
        """Return the digest of all that a run is made of but its seed.

        Args:
            run: beside which those lie that it names.
            record: its own, or of a run that it rests on.
            above: the runs that rest on this one.
        """
        below: list[str | None] = []
        for name in (record.subject, record.source):
            under = None if name in above else self.beside(run, name)
            below.append(self.variant(run, under, above | {name or ""}) if under else name)
        model = replace(record.model, name="")
        asked = {
            "settings": settings(record),
            "files": record.files,
            "concepts": record.concepts,
            "model": model,
            "drawn": (record.prompts, record.theme, record.questions),
            "taught": (record.forget, record.retain, record.validation, record.test, record.arm),
            "below": below,
            "patches": record.patches,
        }
        return _digest({"kind": record.kind, **asked})


def settings(record: Record) -> str:
    """Return the digest of a method and all its settings; empty where there was no method.

    A file that a setting names counts by what it holds, wherever it lies.
    """
    if not record.method:
        return ""
    own = record.arguments | {n: d for n, d in record.files.items() if n in record.arguments}
    many = [record.processes] if record.processes > 1 else []  # so many times the batch
    return _digest([record.method, own, record.optimizer, *many])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:8]


def _of_run(m: Material, shelf: _Shelf) -> Iterator[Row]:
    about, record = _about(m, shelf), m.record
    cells = _Cells(m)
    numbers = [*record.numbers, *(record.by_concept if len(record.concepts) > 1 else ())]
    for number in [*numbers, *_shown(numbers), *costs(m)]:
        row = _row(about, number, record)
        yield replace(row, judged=cells.of(row)) if row.share else row


def _shown(numbers: Sequence[Number]) -> Iterator[Number]:
    """Yield how often the concept is shown, which is what a UA leaves, where none says it."""
    names = {number.name for number in numbers}
    for ua in numbers:
        name, comma, behind = ua.name.partition(",")
        if name == "UA" and SHOWN + comma + behind not in names:
            value, low, high = 1 - ua.value, 1 - ua.high, 1 - ua.low
            own = replace(ua, name=SHOWN + comma + behind, value=value, low=low, high=high)
            yield replace(own, meaning=MEANINGS[SHOWN])


def _about(m: Material, shelf: _Shelf) -> Row:
    """Return what all rows of a run say alike."""
    record, model = m.record, m.record.model
    under = shelf.beside(m.run, record.subject)
    commit = str(record.git.get("commit") or "")
    return Row(
        kind=m.kind,
        method=record.method,
        title=m.title,
        preset=record.preset,
        settings=settings(record),
        variant=shelf.variant(m.run, record),
        model=Path(model.name).name if Path(model.name).is_absolute() else model.name,
        identity=model.identity,
        base=", ".join(f"{name} {said}" for name, said in model.files.items()),
        concepts=", ".join(record.names),
        kinds=", ".join(dict.fromkeys(c.kind for c in record.concepts)),
        on=shelf.on(m),
        subject_method=under.method if under else "",
        subject_title=under.title if under else "",
        subject_settings=settings(under) if under else "",
        run=m.run.name,
        folder=str(m.run.folder),
        seed=None if _seedless(record) else record.seed,
        subject=record.subject or "",
        subject_seed=under.seed if under and not _seedless(under) else None,
        prompts=record.prompts,
        seconds=record.seconds.get("train"),
        memory_mb=record.peak_memory_mb,
        evaluations=record.evaluations,
        commit=f"{commit}+" if commit and record.git.get("dirty") else commit,
        command=record.command,
        started=record.started,
    )


def _seedless(record: Record) -> bool:
    registry = {"erase": ERASERS, "recover": RECOVERIES}.get(record.kind)
    return registry is not None and registry.said(record.method, "seedless")


def _row(about: Row, number: Number, record: Record) -> Row:
    """Return a number with what it is of."""
    entries = [e for e in (record.judge, *record.judges, record.clip) if e]
    who = list(dict.fromkeys(e.name for e in entries if _says(number.spec, e)))
    measure = number.name
    for name in who:
        measure = measure.removesuffix(f", by {name}").removesuffix(f", with {name}")
    meaning = number.meaning or MEANINGS.get(measure.partition(",")[0], "")
    return replace(
        about,
        judge="; ".join(who),
        measure=measure,
        concept=number.concept,
        value=number.value,
        low=number.low,
        high=number.high,
        n=number.n,
        missing=number.missing,
        unit=number.unit,
        spec=number.spec,
        meaning=meaning,
        better=WAYS.get(arrow(measure, meaning), ""),
    )


def _says(spec: str, entry: Entry) -> bool:
    """Return whether a number's spec names a judge; older ones say no more than its name."""
    parts = spec.split("; ")
    return any(part.startswith((spec_text(entry), f"{entry.name} v")) for part in parts)


def _unedited(runs: Iterable[Material]) -> Iterator[Row]:
    """Yield the unedited model's numbers, once for all erasures that have the same beside them."""
    seen = set()
    for m in runs:
        if m.kind != "erase" or not m.record.baseline:
            continue
        about, record = _about(m, _Shelf({})), m.record
        model = replace(record.model, name="")
        variant = _digest(["original", record.concepts, model, record.prompts])
        plain_ = Row(
            **{f.name: getattr(about, f.name) for f in fields(About)},
            run=record.original or "",
        )
        for number in [*record.baseline, *_shown(record.baseline)]:
            row = _row(plain_, number, record)
            row = replace(row, kind="original", on="unedited", variant=variant)
            row = replace(row, method="", title="unedited", preset="", settings="")
            key = variant, row.spec, row.measure, row.concept
            if key not in seen:
                seen.add(key)
                yield row


# --- what the judge said of each picture ---


@dataclass
class _Cells:
    """The judgements that a run's shares are of."""

    m: Material

    def __post_init__(self) -> None:
        record = self.m.record
        first = [record.judge] if record.judge else []
        self.judges = {e.name: e for e in (*record.judges, *first)}
        self.first = record.judge.name if record.judge else ""
        self.pictures = list(self.m.pictures.values())

    def of(self, row: Row) -> tuple[Cell, ...]:
        """Return the judgements that a share is of; none where they do not give it again."""
        target = Target(tuple(c for c in self.m.target.concepts if row.concept in ("", c.name)))
        if row.judge not in self.judges or not target or not self.pictures:
            return ()
        if row.measure == SHOWN:
            cells = self._shown(row.judge, target)
        else:
            cells = self._rated(row.judge, row.measure, target)
        good = [hit for *_, hit in cells if hit is not None]
        same = len(good) == row.n and row.n and abs(sum(good) / len(good) - row.value) < 1e-9
        return tuple(cells) if same else ()

    def _labels(self, judge: str, picture: Picture) -> Mapping[str, str | None]:
        return picture.labels if judge == self.first else picture.others.get(judge, {})

    def _shown(self, judge: str, target: Target) -> list[Cell]:
        pairs = [(p, c, self._labels(judge, p)) for p in self.pictures for c in target.asked(p)]
        return [
            ((p.key, c.name), p.cluster, rates.agrees(labels[c.kind], c.name))
            for p, c, labels in pairs
            if c.kind in labels
        ]

    def _rated(self, judge: str, measure: str, target: Target) -> list[Cell]:
        said = [self._labels(judge, p) for p in self.pictures]
        heads = set.intersection(*map(set, said)) if said else set()
        known = self._known(judge)
        names = {c.name for c in self.m.target.concepts}
        asks = [
            {k: n for k, n in p.asks.items() if not known or n in known or n in names}
            for p in self.pictures
        ]
        labels = {kind: [each[kind] for each in said] for kind in sorted(heads)}
        found = rates.judgements(target.key, asks, labels).get(measure, [])
        times: Counter[int] = Counter()
        cells = []
        for i, good in found:
            picture = self.pictures[i]
            cells.append(((picture.key, times[i]), picture.cluster, good))
            times[i] += 1
        return cells

    def _known(self, judge: str) -> set[str]:
        return set(self.judges[judge].classes)
