"""The engine that needs nothing: one command after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palimpsest.cli import STOPPED
from palimpsest.cli.bench.work import Work, carry_out


@dataclass(frozen=True)
class Here:
    """One command after the other, in this process."""

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Carry out commands in their order.

        Raises:
            KeyboardInterrupt: as soon as a command was stopped by it.
        """
        for work in works:
            code = carry_out(work.argv, work.folder)
            if code == STOPPED:
                raise KeyboardInterrupt
            yield work.key, code

    def close(self) -> None:
        """Hold nothing."""
