"""`palimpsest judge RUN…`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console, machine, open_run
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import MEASURES, measure
from palimpsest.methods import Measure
from palimpsest.runs.folder import Run


@dataclass(frozen=True, kw_only=True)
class Judge(machine.Machine):
    """Judge the pictures of runs afresh, each by its own judge, and show the numbers."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Folders of erasing or recovering runs."""
    measures: tuple[str, ...] = ()
    """Measures of other packages to count too, by name; those that a run has are kept."""

    def __call__(self, call: Call) -> None:
        """Judge each run's pictures and write its numbers down again."""
        if not self.runs:
            raise PalimpsestError("needs RUN (see palimpsest judge --help)")
        chosen = [Run.open(folder) for folder in self.runs]
        for run in chosen:
            open_run.concept_of(run)
            if not run.done or run.record().judge is None:
                why = "has no judge" if run.done else "is not finished"
                raise PalimpsestError(f"{run.folder}: this run {why}; name one that was judged")
        for run in chosen:
            open_run.panel_of(run, self.device)  # refuse before any is judged
        from palimpsest.runs.scoring import rejudge

        for run, more in zip(chosen, [self._more(run) for run in chosen], strict=True):
            rejudge(run, open_run.panel_of(run, self.device), more, console.warn)
            console.numbers(run.name, [(run.record().title, run)])

    def _more(self, run: Run) -> list[Measure]:
        """Return the measures of other packages that are asked for, and those that the run has."""
        from palimpsest.runs.scoring import titles

        had, named = run.record().measures, [measure(name) for name in self.measures]
        others = [measure(n) for n in MEASURES if n not in {*MEASURES.own, *self.measures}]
        return [*named, *(each for each in others if titles([each])[0] in had)]
