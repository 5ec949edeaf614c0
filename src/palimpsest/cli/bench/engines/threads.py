"""What processes that carry out commands compute with, and how they end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

KILLED = 137
"""The exit code of a command whose process was killed, as a shell tells it."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let processes that are begun inside the block compute with so many threads."""
    was = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(n)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if was is not None:
            os.environ["OMP_NUM_THREADS"] = was
