"""Progress that a person sees: bars on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from palimpsest.core import progress as core_progress
from palimpsest.core.pace import Pace, duration

if TYPE_CHECKING:
    from rich.progress import (
        Task,
        TaskID,
    )

QUIET_SECONDS = 10.0
"""Without a terminal, at most one line in this time."""
FRAME_SECONDS = 0.25
"""In a notebook, at most one change of a bar in this time."""


def progress() -> core_progress.Progress:
    """Return progress that shows itself: for `Context`, `Runner`, `Panel` and the like.

    In a notebook it is a bar below the cell, on a terminal a bar on stderr, and elsewhere a line on
    stderr now and then. All of them tell the time that is left.
    """
    if in_notebook():
        return Displayed()
    return Bars() if sys.stderr.isatty() else Lines()


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return getattr(found and found(), "kernel", None) is not None


# --- a terminal ---


class Left(ProgressColumn):
    """The time left by a task's pace."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return hours, minutes and seconds; dashes before the first step."""
        left = task.fields["pace"].left
        return Text("-:--:--" if left is None else _clock(left), style="progress.remaining")


class Bars:
    """A bar a task, with the share, the count, the time taken and the time left."""

    def __init__(self) -> None:
        self.live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Left(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(stderr=True),
            transient=True,
        )

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Yield a bar that goes away when its work is done, leaving one line behind."""
        start, outer = time.monotonic(), bool(self.live.tasks)
        with nullcontext() if outer else self.live:
            pace = Pace(total, done)
            bar = self.live.add_task(label, total=total, completed=done, note="", pace=pace)
            try:
                yield Bar(self.live, bar, pace)
                if not outer:
                    took = duration(time.monotonic() - start)
                    self.live.console.print(
                        f"{label}: {total} in {took}", highlight=False, markup=False
                    )
            finally:
                self.live.remove_task(bar)


class Bar:
    """One bar."""

    def __init__(self, live: Progress, task: TaskID, pace: Pace) -> None:
        self.live, self.id, self.pace = live, task, pace

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on."""
        self.pace.advance(steps)
        self.live.update(self.id, advance=steps, note=note)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


# --- neither terminal nor notebook ---


class Lines:
    """Plain lines on stderr."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Line]:
        """Yield a task that says now and then how far it has come."""
        yield Line(label, Pace(total, done))


class Line:
    """One task in plain lines: the first after a while, so that short work says nothing."""

    spoke = 0.0

    def __init__(self, label: str, pace: Pace) -> None:
        self.label, self.pace = label, pace

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on, and speak if nobody has for a while."""
        self.pace.advance(steps)
        now = time.monotonic()
        if now - max(Line.spoke, self.pace.start) < QUIET_SECONDS:
            return
        Line.spoke = now
        sys.stderr.write(f"{self.label}: {told(self.pace, note)}\n")


def told(pace: Pace, note: str = "") -> str:
    """Return how far work has come, how long it took or will still take, and a note."""
    left = "" if pace.left is None else f", {duration(pace.left)} left"
    if pace.done >= pace.total:
        left = f" in {duration(time.monotonic() - pace.start)}"
    return f"{pace.done} of {pace.total}{left}{f', {note}' if note else ''}"


# --- a notebook ---


class Displayed:
    """A bar a task below a notebook's cell; when its work is done, one line stays."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Cell]:
        """Yield a bar that becomes a line when its work is done."""
        cell = Cell(label, Pace(total, done))
        try:
            yield cell
        finally:
            cell.close()


class Cell:
    """One bar in a notebook."""

    def __init__(self, label: str, pace: Pace) -> None:
        from IPython.display import display  # type: ignore[import-not-found]

        self.label, self.pace, self.shown = label, pace, pace.start
        self.note, self.took = "", ""
        self.handle: Any = display(self, display_id=True)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on, and change the bar if it was not changed just now."""
        self.pace.advance(steps)
        self.note = note
        if (now := time.monotonic()) - self.shown >= FRAME_SECONDS:
            self.shown = now
            self.handle.update(self)

    def close(self) -> None:
        """Leave a line behind: how much was done, and how long it took."""
        self.took = duration(time.monotonic() - self.pace.start)
        self.handle.update(self)

    def __repr__(self) -> str:
        done = f"{self.pace.done} of {self.pace.total} in {self.took}"
        return f"{self.label}: {done if self.took else told(self.pace, self.note)}"

    def _repr_html_(self) -> str:
        if self.took:
            return f"<div>{escape(repr(self))}</div>"
        bar = f'<progress value="{self.pace.done}" max="{max(self.pace.total, 1)}"></progress>'
        return f"<div>{bar} {escape(repr(self))}</div>"
