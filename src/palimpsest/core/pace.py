"""How long work will still take, told so that it does not jump."""

from __future__ import annotations

import time
from collections.abc import Callable

MEMORY = 20
"""Over about as many of the last advances the pace is a mean."""


class Pace:
    """Seconds a step, as a mean over the last advances, and what is left by it.

    The first advance also pays for what is done once (files, compiling, a first allocation), so it
    counts only until there is a second. Between two advances the time left runs down as a clock
    does, by one advance at most.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.clock = total, done, clock
        self.start = self.last = clock()
        self.advances, self.seconds, self.steps = 0, 0.0, 0.0
        self.size = 0

    def advance(self, steps: int) -> None:
        """Count steps that are done now; of none, their time falls to the next."""
        if steps <= 0:
            return
        now = self.clock()
        self.advances += 1
        if self.advances == 2:
            self.seconds = self.steps = 0.0
        keep = 1 - 1 / MEMORY if self.advances > MEMORY + 1 else 1.0
        self.seconds = keep * self.seconds + (now - self.last)
        self.steps = keep * self.steps + steps
        self.last, self.size = now, steps
        self.done += steps

    @property
    def step(self) -> float | None:
        """Seconds a step; None before the first."""
        return self.seconds / self.steps if self.steps else None

    @property
    def left(self) -> float | None:
        """Seconds that are left; None before the first step."""
        if self.step is None:
            return None
        remaining = max(self.total - self.done, 0)
        since = min(self.clock() - self.last, self.step * min(self.size, remaining))
        return max(remaining * self.step - since, 0.0)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
