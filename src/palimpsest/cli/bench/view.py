"""What a person sees of a campaign while it runs: how far it is, and what each command is at."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from palimpsest.cli import telling
from palimpsest.cli.bench.work import LOG, SHORT, Work
from palimpsest.cli.console import verbatim
from palimpsest.core.pace import Pace, duration

AT_WORK_SECONDS = 300.0
"""A command whose log was written to so lately is at work: it speaks at least at every lot."""
MOST = 8
"""Commands at work that are shown."""


class View:
    """A campaign's progress: one live page on a terminal, elsewhere a line for each that ends."""

    def __init__(self, works: Sequence[Work], done: int) -> None:
        """Begin.

        Args:
            works: those still to be carried out.
            done: how many were done before.
        """
        self.waiting = {work.key: work for work in works}
        self.total, self.before, self.failed = len(works) + done, done, 0
        self.pace = Pace(len(works))
        self.console = Console(file=sys.stderr, highlight=False, emoji=False)
        self.terminal = sys.stderr.isatty() and not telling.now.quiet
        self.live = Live(
            get_renderable=self.page, console=self.console, refresh_per_second=2, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> View:
        if self.terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.terminal:
            self.live.stop()

    @property
    def done(self) -> int:
        """Commands that have ended, well or not."""
        return self.total - len(self.waiting)

    def ended(self, key: str, code: int) -> None:
        """Take note of the end of a command, and say it."""
        work = self.waiting.pop(key)
        self.pace.advance(1)
        well = code in (0, SHORT)
        self.failed += not well
        if well and telling.now.quiet:
            return
        said = "done" if well else f"failed with code {code}: {verbatim(work.said)}"
        left = "" if self.pace.left is None else f", about {duration(self.pace.left)} left"
        line = f"{self.done}/{self.total} {work.title}: {said}{left if well else ''}"
        self.console.out(line, highlight=False)

    def page(self) -> Group:
        """Return the live page."""
        head = Table.grid(padding=(0, 1))
        left = "-" if self.pace.left is None else duration(self.pace.left)
        told = f"{self.done} of {self.total} done, {left} left"
        told += f", {self.failed} failed" if self.failed else ""
        head.add_row(ProgressBar(total=max(self.total, 1), completed=self.done, width=30), told)
        now = Table.grid(padding=(0, 1))
        running = self._running()
        for work in running[:MOST]:
            now.add_row(Text("  " + work.title), Text(verbatim(work.said), style="dim"))
        if len(running) > MOST:
            now.add_row(Text(f"  and {len(running) - MOST} more"))
        return Group(head, now)

    def _running(self) -> list[Work]:
        """Return the commands that are at work, the longest at it first."""
        found, now = [], time.time()
        for work in [*self.waiting.values()]:
            try:
                stat = (work.folder / LOG).stat()
            except OSError:
                continue
            if now - stat.st_mtime < AT_WORK_SECONDS:
                found.append(work)
        return found
