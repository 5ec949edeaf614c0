"""`palimpsest compare RUN RUN…`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from palimpsest.cli import console, open_run
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Number
from palimpsest.runs.folder import Run

if TYPE_CHECKING:
    from palimpsest.report.load import Material
    from palimpsest.report.sections.compared import Comparison


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods picture by picture: runs of one concept, model, judge and set of prompts.

    Shows each method's rates, then how far each pair differs, with the 95 % interval, p, and the
    same by Holm's correction for the number of pairs. p is the larger of a permutation test's over
    prompts and a t test's that also knows of shared seeds.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Folders of two or more erasing or recovering runs; each difference is an earlier one's rate
    less a later one's."""

    def __call__(self, call: Call) -> None:
        """Show the rates, then the differences."""
        folders = list(dict.fromkeys(folder.resolve() for folder in self.runs))
        if len(folders) < 2:
            raise PalimpsestError("needs two different RUNs (see palimpsest compare --help)")
        from palimpsest.report.sections.compared import compare

        found = compare([_opened(folder) for folder in folders])
        if not found.numbers:
            raise PalimpsestError(
                f"{folders[0]}: no picture was judged in what its prompt asks for; judge all these "
                "runs again with `palimpsest judge`"
            )
        _show(found)


def _opened(folder: Path) -> Material:
    from palimpsest.report.load import read

    run = open_run.finished(Run.open(folder))
    open_run.concept_of(run, run.record().names[0] if run.record().concepts else None)
    return read(folder)


def _show(found: Comparison) -> None:
    from palimpsest.report.prose import chance

    rows = [console.across(name, some) for name, some in found.numbers.items()]
    console.table(
        f"{found.concept}, by {found.spec}", ["", "n", *found.methods], rows, found.meanings
    )
    pairs = [
        [
            f"{pair.ours} − {pair.theirs}, {pair.number}",
            str(pair.difference.rate.n),
            Number.of("", pair.difference.rate, "points"),
            *(chance(p).removeprefix("= ") for p in (pair.difference.p, pair.corrected)),
        ]
        for pair in found.pairs
    ]
    columns = ["", "n", "difference", "p", "p, Holm"]
    console.table("Each pair, on the same prompts and seeds", columns, pairs)
