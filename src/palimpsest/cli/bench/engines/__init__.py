"""Where the commands of a campaign are carried out: here, on Ray, on Slurm, or as others add.

An engine is a frozen dataclass; its fields are flags of `palimpsest bench --engine NAME`. It is
given words and folders, never an object. The order is the engine's affair: Ray has references for
it and Slurm dependencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from palimpsest.cli.bench.work import Work
from palimpsest.core.registry import Registry


class Engine(Protocol):
    """Carries out commands."""

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Carry out commands, each after those whose runs it starts from.

        Args:
            works: in such an order.

        Yields:
            The key and the exit code of each, as it ends.
        """
        ...

    def close(self) -> None:
        """Give back what is held; what has not begun is given up."""
        ...


ENGINES = Registry(
    "engine",
    "palimpsest.engines",
    {"here": "Here", "ray": "Ray", "slurm": "Slurm"},
    "palimpsest.cli.bench.engines",
)
