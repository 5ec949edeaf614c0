"""How the works of a bench are carried out: an engine is one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from palimpsest.bench.work import Work
from palimpsest.core.registry import Registry


class Engine(Protocol):
    """Carries out works; its fields are flags."""

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Begin all, in topological order, and yield each one's key and exit code as it ends."""
        ...

    def close(self) -> None:
        """Cancel what is not begun, let the rest end or stop it, and say which."""
        ...


ENGINES = Registry(
    "engine", "palimpsest.engines", {"ray": "Ray", "slurm": "Slurm"}, "palimpsest.bench.engines"
)
"""Every engine by its command-line name."""
