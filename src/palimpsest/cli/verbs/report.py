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
    """Write one page about runs, or a site of many: pictures, curves, numbers, how each was made."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Run folders, or folders that hold runs, such as `runs/`."""
    out: Path | None = None
    """The file to write; report.html inside the one folder named, else in the working folder."""
    site: Path | None = None
    """A folder to write a site into, in place of one page: a leaderboard, and a page a run."""
    open: bool = False
    """Open it in the browser."""

    def __call__(self, call: Call) -> None:
        """Write the page and say where it lies."""
        if not self.runs:
            raise PalimpsestError("needs RUN (see palimpsest report --help)")
        page = self._page() if self.site is None else self._site(self.site)
        console.made(page)
        if self.open:
            webbrowser.open(page.resolve().as_uri())

    def _page(self) -> Path:
        from palimpsest.report import write_report

        home = self.runs[0] if len(self.runs) == 1 else Path()
        return write_report(list(self.runs), self.out or home / "report.html")

    def _site(self, folder: Path) -> Path:
        if self.out is not None:
            raise PalimpsestError("--out names one file and --site a folder; choose one of them")
        from palimpsest.report.site import write_site

        return write_site(self.runs, folder, console.warn)
