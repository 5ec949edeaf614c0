"""`palimpsest report RUN…`."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page about runs, a site of many, or their numbers as data.

    The page has pictures, curves, numbers, and how each was made. With --site there is a
    leaderboard, and such a page for each run. With --entry it is the entry of one method for a
    leaderboard (leaderboard/README.md).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Run folders, or folders that hold runs, such as `runs/`."""
    out: Path | None = None
    """The file to write: .html is the page, .csv a line for every number of every run, .md and .tex
    tables over seeds, .json all of it. When left out, report.html inside the one folder named, else
    in the working folder."""
    site: Path | None = None
    """Write a site into this folder, new or a site before, and nothing else unless --out is given:
    a leaderboard, figures, and a page for each run, for the disk or any web server."""
    entry: Path | None = None
    """Write the entry of one method for a leaderboard, .json, and nothing else unless --out is
    given: erasures by one method with its seeds and concepts, and recoveries from them."""
    by: str = ""
    """Of an entry: who made the runs, in words of your own."""
    open: bool = False
    """Open it in the browser."""

    def __call__(self, call: Call) -> None:
        """Write what is asked for and say where it lies."""
        if not self.runs:
            raise PalimpsestError("needs RUN (see palimpsest report --help)")
        if self.by and self.entry is None:
            raise PalimpsestError(
                "--by is of an entry; name its file with --entry, or leave it out"
            )
        home = self.runs[0] if len(self.runs) == 1 else Path()
        out = self.out or (None if self.entry or self.site else home / "report.html")
        if out is not None:
            self._write(out)
        if self.site is not None:
            self._write_site(self.site)
        if self.entry is not None:
            from palimpsest.report.results.entry import write_entry

            console.made(write_entry(self.runs, self.entry, self.by))

    def _write(self, out: Path) -> None:
        from palimpsest.report.forms import check_form
        from palimpsest.report.results.files import RESULTS, write_results

        if not out.is_dir():  # which the page refuses
            check_form(out, [".html", *RESULTS])
        if out.suffix in RESULTS:
            console.made(write_results(self.runs, out))
            return
        from palimpsest.report import write_report

        self._show(write_report(list(self.runs), out))

    def _write_site(self, folder: Path) -> None:
        from palimpsest.report.site import write_site

        self._show(write_site(self.runs, folder, console.warn))

    def _show(self, page: Path) -> None:
        console.made(page)
        if self.open:
            webbrowser.open(page.resolve().as_uri())
