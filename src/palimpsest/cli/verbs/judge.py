"""`palimpsest judge RUN…`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from palimpsest.cli import console, machine, open_run
from palimpsest.cli.telling import Shown
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import MEASURES, Counting, open_measure
from palimpsest.methods import Judge as Looking
from palimpsest.methods import Measure, Number, Task
from palimpsest.metrics import rates
from palimpsest.runs.folder import Run

if TYPE_CHECKING:
    from palimpsest.runs.scoring import Panel


@dataclass(frozen=True, kw_only=True)
class Judge(machine.Machine):
    """Judge the pictures of runs afresh, each by its own judges or by more, and show the numbers.

    Nothing is drawn.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Folders of erasing or recovering runs."""
    judge: tuple[str, ...] = ()
    """Judges to add to those that each run has, by the names of `palimpsest erase --judge`."""
    class_map: Path | None = None
    """For `hf:` and `vit:`: a JSON file of a classifier's label → the concept's name."""
    measures: tuple[str, ...] = ()
    """Measures to count too, by name: ssim, ms_ssim, lpips:FILE, style:FILE, kid, fid, clip_score,
    watermark, or of other packages (docs/judges.md). Those that a run has are kept, but for those
    with a colon: name them again."""
    force: bool = False
    """Count distances of fewer pictures than a feature has numbers, too: they are biased upward."""
    budget: float | None = None
    """Judge nothing and write nothing: show how many pictures each share needs for a 95 % interval
    that is this wide from end to end, in points of per cent, where it lies and with prompts and
    seeds shared as they are."""

    def __call__(self, call: Call) -> None:
        """Judge each run's pictures and write its numbers down again."""
        if not self.runs:
            raise PalimpsestError("needs RUN (see palimpsest judge --help)")
        words = machine.judges_of(self.judge, False)
        chosen = [Run.open(folder) for folder in self.runs]
        for run in chosen:
            if run.record().concept is None:
                open_run.concept_of(run)  # says so
            if not run.done or (run.record().judge is None and not words):
                why = "has no judge" if run.done else "is not finished"
                told = "name one that was judged, or a judge with --judge"
                raise PalimpsestError(f"{run.folder}: this run {why}; {told}")
        if self.budget is not None:
            return self._plan(chosen, self.budget)
        for run in chosen:
            self._more(run, self._panel(run, words))  # refuse before any is judged
        from palimpsest.runs.scoring import rejudge, titles

        for run in chosen:
            panel = self._panel(run, words)
            machine.warn_blind(panel, run.record().concepts)
            more = self._more(run, panel)
            lost = {*run.record().measures} - {*titles([*panel.measures, *more])}
            if lost:
                console.warn(f"{run.name}: not counted again, name it: {'; '.join(sorted(lost))}")
            rejudge(run, panel, more, console.warn)
            console.numbers(run.name, [(run.record().title, run)])

    def _panel(self, run: Run, words: Sequence[str]) -> Panel:
        """Return the run's own judges, and those that are added."""
        from palimpsest.runs.scoring import plain

        own = open_run.panel_of(run, self.device)
        opened = open_run.opening_of(plain(run), self.device, self.class_map)
        clip: Any = own.clip
        more = machine.panel(words, opened, clip)
        judges = {getattr(judge, "ref", None) or id(judge): judge for judge in own.judges}
        for word, judge in zip(words, more.judges, strict=True):
            ref = getattr(judge, "ref", None) or id(judge)
            if ref in judges and (self.class_map is None or _mapped(judge, judges[ref])):
                continue  # the run has it
            if judges.get(ref) is own.judge and own.judge is not None:
                told = "was judged first by it with another class map; make the run again"
                raise PalimpsestError(f"--judge {word}: {run.folder} {told}")
            judges[ref] = judge
        first, *others = judges.values()
        return replace(more, judge=first, others=tuple(others), force=self.force)

    def _plan(self, runs: Sequence[Run], budget: float) -> None:
        """Show how many pictures an interval of a given width needs."""
        if not 0.01 <= budget <= 100:
            raise PalimpsestError(f"--budget {budget:g}: it must be 0.01 to 100 points")
        for run in runs:
            shares = [row for row in run.record().each if row.unit == "%" and row.n]
            rows = [[*_planned(row, budget / 100)] for row in shares if 0 <= row.value <= 1]
            means = {row.name: row.meaning for row in shares}
            title = f"{run.name}: pictures for an interval of {budget:g} points"
            console.table(
                title, ["", "value", "n", "points wide now", "pictures needed"], rows, means
            )

    def _more(self, run: Run, panel: Panel) -> list[Measure]:
        """Return the measures that are asked for, and those that the run has."""
        from palimpsest.runs.images import asked
        from palimpsest.runs.scoring import refuse, titles

        counting = Counting("", panel.judge, panel.clip, self.device, self.force)
        found = [open_measure(word, counting) for word in self.measures]
        for name in MEASURES:
            with suppress(PalimpsestError):  # it is never named, or cannot be opened by name alone
                (title,) = titles([each := open_measure(name, counting)])
                if title in run.record().measures and title not in titles(found):
                    found.append(each)
        refuse(run, Task(run.record().concepts), asked(run), found)
        return found


def _mapped(a: Looking, b: Looking) -> bool:
    """Return whether two judges read a classifier's labels alike."""
    maps = (getattr(getattr(j, "opening", None), "class_map", None) for j in (a, b))
    return next(maps) == next(maps)


def _planned(row: Number, width: float) -> Iterator[Any]:
    """Yield a share, what it is over, how wide its interval is, and the pictures that it needs."""
    now = row.high - row.low
    deff = max(row.n / max(rates.independent(now, row.value), 1), 1)
    yield row.name
    yield Shown(row, f"{100 * row.value:.1f} %")
    yield row.n
    yield Shown(100 * now, f"{100 * now:.1f}")
    needed = rates.pictures_for(width, row.value, deff)
    yield Shown(needed, f"{needed:,}")
