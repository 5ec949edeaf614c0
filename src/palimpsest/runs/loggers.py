"""Where a run's training rows and final numbers go besides its folder: trackio, W&B, or others'.

A logger is never needed and changes nothing of a run: neither its hash nor its command knows of it,
and one that fails is left out from then on, with a warning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.extras import optional
from palimpsest.core.registry import Registry, nearest
from palimpsest.core.typed import plain
from palimpsest.runs.record import Record

PROJECT = "palimpsest"
"""Under which runs are kept, unless the board's own variable names another."""
BOARDS = {"trackio": "TRACKIO_PROJECT", "wandb": "WANDB_PROJECT"}
"""Boards of one interface, as extras of their names → the variable that names a project."""
OTHERS = Registry("logger", "palimpsest.loggers", {}, __name__)
"""Those of other packages, each a class that is made without arguments."""


class Logger(Protocol):
    """Takes what one run after another tells."""

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one: its folder's name, and what was asked, JSON-able."""

    def row(self, values: Mapping[str, Any]) -> None:
        """Take a row of the run's log as it comes: `label`, `step` and figures such as `loss`."""

    def end(self, numbers: Mapping[str, float]) -> None:
        """Close the run with its numbers by name; with none, if it was broken off."""


@dataclass
class Board:
    """A board with the interface of W&B, which trackio has as well.

    Trackio keeps runs on this machine. W&B does so, too, where nobody has logged in and
    `WANDB_MODE` does not say otherwise; `wandb sync` sends them later.
    """

    name: str

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run, which has its folder's name there."""
        with redirect_stdout(sys.stderr):  # what it says is nothing that was made
            self.board = optional(self.name, self.name)
            project = os.environ.get(BOARDS[self.name]) or PROJECT
            known = {"project": project, "name": run, "config": dict(about), "resume": "allow"}
            self.board.init(**known, **self._how(run))

    def _how(self, run: str) -> dict[str, Any]:
        if self.name != "wandb":
            return {}
        known = os.environ.get("WANDB_MODE") or self.board.login(prompt=False, verify=False)
        quiet = self.board.Settings(silent=True, console="off")
        return {"id": run, "settings": quiet, "mode": None if known else "offline"}

    def row(self, values: Mapping[str, Any]) -> None:
        """Take a row; figures stand under its label, as boards have a `step` of their own."""
        label = values.get("label") or "training"
        told = {name: v for name, v in values.items() if isinstance(v, int | float)}
        self._log({f"{label}/{name}": v for name, v in told.items()})

    def end(self, numbers: Mapping[str, float]) -> None:
        """Close the run with its numbers."""
        if numbers:
            self._log(dict(numbers))
        with redirect_stdout(sys.stderr):
            self.board.finish()

    def _log(self, figures: dict[str, Any]) -> None:
        with redirect_stdout(sys.stderr):
            self.board.log(figures)


def check(name: str) -> None:
    """Refuse a logger that is not there, before anything is spent; nothing is imported.

    Raises:
        PalimpsestError: no such logger, or its extra is not installed.
    """
    if name in BOARDS:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise PalimpsestError(f"--log {name}: pip install 'palimpsest-ml[{name}]'")
    elif name not in OTHERS:
        raise PalimpsestError(f"no logger {name!r}{nearest(name, [*BOARDS, *OTHERS])}")


def logger(name: str) -> Logger:
    """Return a logger by its name.

    Raises:
        PalimpsestError: as of `check`.
    """
    check(name)
    return Board(name) if name in BOARDS else OTHERS.load(name)()


@dataclass
class Logging:
    """What a run tells a logger; one that fails is told nothing more."""

    to: Logger | None = None
    warn: Callable[[str], None] = lambda sentence: None
    on: bool = field(default=False, init=False)
    """Whether a run was begun there and is not closed."""

    def start(self, run: str, asked: Record) -> None:
        """Begin a run."""
        about = {name: v for name, v in plain(asked).items() if v}
        self._tell(lambda to: to.start(run, about))
        self.on = self.to is not None

    def row(self, values: Mapping[str, Any]) -> None:
        """Take a row of the log."""
        self._tell(lambda to: to.row(values))

    def end(self, done: Record | None = None) -> None:
        """Close the run, with the numbers of its record if it went to its end."""
        if self.on:
            found = done.numbers if done else ()
            numbers = {n.name: n.value for n in found if n.value == n.value}
            self.on = False
            self._tell(lambda to: to.end(numbers))

    def _tell(self, what: Callable[[Logger], None]) -> None:
        if self.to is None:
            return
        try:
            what(self.to)
        except Exception as error:  # another program's: whatever it is, the run goes on
            name = type(self.to).__name__
            name = getattr(self.to, "name", name)
            self.warn(f"the logger {name} fails ({error}); the run goes on without it")
            broken, self.to = self.to, None
            if self.on:
                self.on = False
                with suppress(Exception):
                    broken.end({})
