"""What processes that carry out commands compute with, and how they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

KILLED = 137
"""The exit code of a command whose process was killed, as a shell tells it."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let processes that are begun inside the block compute with so many threads.

    They hear no Ctrl-C: whoever began them ends them.
    """
    was, mask = os.environ.get("OMP_NUM_THREADS"), getattr(signal, "pthread_sigmask", None)
    os.environ["OMP_NUM_THREADS"] = str(n)
    heard = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else ()
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, heard)
        os.environ.pop("OMP_NUM_THREADS")
        if was is not None:
            os.environ["OMP_NUM_THREADS"] = was


def end(pid: int) -> None:
    """Kill a process and all that it began."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        process.suspend()  # so that it begins no others
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()
