"""Which runs belong together: an erasure, the model it started from, and attempts on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from palimpsest.core import hashes
from palimpsest.core.errors import PalimpsestError
from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.report.load import Material, Target, read, seen_by
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record


@dataclass
class Section:
    """One story of the report. Every part but one may be absent."""

    unedited: Material | None = None
    """The unedited model's run, which may have pictures of other suites too."""
    erasure: Material | None = None
    """The erasing run."""
    recoveries: list[Material] = field(default_factory=list)
    """Attempts to bring the concept back to the erased model."""
    controls: list[Material] = field(default_factory=list)
    """The same attempts on the unedited model."""
    gold: Material | None = None
    """The model that never knew the concept."""
    taught: list[Material] = field(default_factory=list)
    """The same attempts on gold: what they bring, they teach."""
    replays: list[Material] = field(default_factory=list)
    """What its recoveries found, tried on other models."""
    others: list[Material] = field(default_factory=list)
    """Runs of a kind that this version does not know; shown as far as possible."""

    @cached_property
    def original(self) -> Material | None:
        """The unedited model on the erasure's prompts."""
        run, erasure = self.unedited, self.erasure
        if run is None or erasure is None:
            return run
        seen = seen_by(run, erasure.record).pictures
        shared = {k: p for k, p in seen.items() if k in erasure.pictures}
        numbers, judge = erasure.record.baseline or run.record.numbers, erasure.record.judge
        record = replace(run.record, numbers=numbers, judge=judge)
        return replace(run, pictures=shared, record=record, seen={})

    @property
    def attempts(self) -> list[tuple[Material, list[Material], str]]:
        """Every recovery, with those on the same model, which is `erased`, `gold` or `unedited`."""
        sorts = {"erased": self.recoveries, "gold": self.taught, "unedited": self.controls}
        return [(run, among, on) for on, among in sorts.items() for run in among]

    @property
    def runs(self) -> list[Material]:
        """All of its runs, in the order of their making."""
        first = [m for m in (self.original, self.erasure) if m]
        gold = [m for m in [self.gold] if m]
        tried = [*self.recoveries, *gold, *self.taught, *self.controls, *self.replays]
        return [*first, *tried, *self.others]

    @property
    def lead(self) -> Material:
        """The run that the section is about."""
        return next(m for m in (self.erasure, *self.runs[::-1]) if m)

    def twin(self, recovery: Material) -> Material | None:
        """Return the same recovery on gold."""
        return next((m for m in self.taught if _alike(m, recovery)), None)

    def advantage(self, recovery: Material) -> Rate | None:
        """Return a recovery's relearning advantage over its twin on gold; None if there is none."""
        twin = self.twin(recovery)
        return relearning.advantage(recovery.record.curve, twin.record.curve) if twin else None

    def control(self, recovery: Material) -> Material | None:
        """Return the same recovery on the unedited model."""
        return next((m for m in self.controls if _alike(m, recovery)), None)

    @property
    def target(self) -> Target:
        """The concepts; none of an original alone."""
        return self.lead.target

    @property
    def lesson(self) -> bool:
        """Whether it is about a CLIP or a LLaVA that was made to forget names."""
        return self.lead.lesson


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders that paths stand for: each its own, or all finished ones in a folder.

    Runs of a CLIP or a LLaVA lie one folder deeper, unless told otherwise.

    Raises:
        PalimpsestError: a path neither is nor holds a run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if (path / "run.json").is_file():
            found.append(path)
            continue
        inside = sorted(
            place.parent
            for depth in ("*", "*/*")
            for place in path.glob(f"{depth}/run.json")
            if not place.parent.name.startswith(".")  # one that was being taken away
        )
        if not inside:
            raise PalimpsestError(
                f"{path}: no run lies here (it has no run.json); "
                "name a run's folder or the folder that holds the runs"
            )
        finished = sorted(
            (p for p in inside if Run.open(p).done), key=lambda p: Run.open(p).record().started
        )
        if not finished:
            raise PalimpsestError(f"{path}: no run in it has finished; let one finish first")
        found += finished
    if not found:
        raise PalimpsestError("no run was named; name one or more run folders")
    return found


def arrange(paths: Sequence[Path]) -> list[Section]:
    """Read the named runs and those that they refer to, and put together what belongs together."""
    by_name = _once(_with_siblings(expand(paths)).values())
    lessons = [Section(unedited=_before(m), erasure=m) for m in by_name.values() if m.lesson]
    runs = {name: m for name, m in by_name.items() if not m.lesson}
    golds = {name for m in runs.values() if (name := m.record.gold) in by_name}
    sections = {
        m.run.name: Section(
            unedited=by_name.get(m.record.original or ""),
            erasure=m,
            gold=seen_by(gold, m.record) if (gold := by_name.get(m.record.gold or "")) else None,
        )
        for m in runs.values()
        if m.kind == "erase" and m.run.name not in golds
    }
    if not sections:  # gold alone is a story too
        golds = set()
        sections = {m.run.name: Section(erasure=m) for m in runs.values() if m.kind == "erase"}
    alone: dict[tuple[str, str], Section] = {}
    attempts = [m for m in runs.values() if m.kind not in ("original", "erase")]
    for m in sorted(attempts, key=lambda m: m.record.subject in golds):  # gold's come last
        if m.record.source is not None:
            _place_replay(m, sections, alone, by_name)
        elif m.record.subject in golds:
            _teach(m, sections)
        else:
            _place(m, sections, alone, by_name)
    told = [*sections.values(), *alone.values()]
    used = {m.run.name for section in told for m in section.runs}
    rest = [Section(unedited=m) for name, m in runs.items() if name not in used | golds]
    return told + rest + lessons


def _once(runs: Iterable[Material]) -> dict[str, Material]:
    """Runs by name. The name says all that a run depends on: the same one twice is the same run."""
    found: dict[str, Material] = {}
    for m in runs:
        twin = found.get(m.run.name)
        found[m.run.name] = replace(m, pictures=m.pictures | twin.pictures) if twin else m
    return found


def _before(run: Material) -> Material:
    """Return the unedited model of a lesson, which has no run of its own."""
    return Material(run.run, Record(kind="original", numbers=run.record.baseline), {})


def _with_siblings(folders: list[Path]) -> dict[Path, Material]:
    found: dict[Path, Material] = {}
    waiting = list(folders)
    with hashes.late("Runs read", len(folders)) as advance:
        while waiting:
            folder = waiting.pop(0).resolve()
            if folder in found:
                continue
            found[folder] = read(folder)
            waiting += found[folder].siblings
            advance(1)
    return found


def _place(
    run: Material,
    sections: dict[str, Section],
    alone: dict[tuple[str, str], Section],
    by_name: dict[str, Material],
) -> None:
    """Put a run that is neither original nor erasure into the section it belongs to."""
    subject, original = run.record.subject or "", run.record.original or ""
    if subject in sections:
        home = sections[subject]
        (home.recoveries if run.kind == "recover" else home.others).append(run)
        return
    if run.kind == "recover" and not subject:
        kin = [s for s in sections.values() if _matches(s, run, original)]
        for section in kin:
            section.controls.append(run)
        if kin:
            return
    lone = Section(unedited=by_name.get(original))
    what = run.target.name or f"{run.record.theme} {run.record.prompts}"
    home = alone.setdefault((what, subject), lone)
    (home.recoveries if run.kind == "recover" else home.others).append(run)


def _place_replay(
    run: Material,
    sections: dict[str, Section],
    alone: dict[tuple[str, str], Section],
    by_name: dict[str, Material],
) -> None:
    """Put what was tried on another model into the section of the model that it was found on."""
    found = by_name.get(run.record.source or "")
    places = [found.record.subject if found else None, run.record.subject]
    home = next((sections[name] for name in places if name in sections), None)
    if home is None:
        lone = Section(unedited=by_name.get(run.record.original or ""))
        home = alone.setdefault((run.target.name, run.record.source or ""), lone)
    home.replays.append(run)


def _teach(run: Material, sections: dict[str, Section]) -> None:
    """Put a recovery on gold beside the same recovery on every erasure that has this gold."""
    subject = run.record.subject
    golds = [s for s in sections.values() if s.gold]
    kin = [s for s in golds if s.gold and s.gold.run.name == subject]
    kin = kin or [s for s in golds if s.target.key == run.target.key]  # gold by another judge
    for section in [s for s in kin if any(_alike(run, r) for r in s.recoveries)] or kin:
        section.taught.append(run)


def _alike(a: Material, b: Material) -> bool:
    """Return whether two runs are one method with the same settings, judged by the same judge."""
    ours, theirs = (m.record.judge.name if m.record.judge else "" for m in (a, b))
    same = (a.record.method, a.record.arguments) == (b.record.method, b.record.arguments)
    return same and ours == theirs


def _matches(section: Section, control: Material, original: str) -> bool:
    """Return whether a recovery on the unedited model is a control of this section's erasure."""
    same = section.unedited is None or section.unedited.run.name == original
    return same and section.target.key == control.target.key
