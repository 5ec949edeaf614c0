"""Progress of long work, shown by whoever asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Task(Protocol):
    """One line of progress."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the line on by `steps`, with a short note such as the loss."""


class Progress(Protocol):
    """Shows how far long work has come and how long it will still take."""

    def task(self, label: str, total: int, done: int = 0) -> Any:
        """Return a context manager that yields a `Task`."""


class Silent:
    """Progress that shows nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Silent]:
        """Yield a task that shows nothing."""
        yield self
