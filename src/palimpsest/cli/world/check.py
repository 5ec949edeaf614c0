"""`palimpsest world check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli import console, machine
from palimpsest.cli.telling import Shown
from palimpsest.cli.tree import Call
from palimpsest.methods import Number
from palimpsest.world import assets


@dataclass(frozen=True)
class Check:
    """Measure how good the world's models are; exit code 1 if a figure falls short."""

    weights: Path = assets.WEIGHTS
    """The folder of weights to check."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes a GPU where there is one, else the CPU."""

    def __call__(self, call: Call) -> int:
        """Print every figure with n, its interval and what it must reach."""
        machine.silence()
        from palimpsest.world.make.check import check

        figures = check(self.weights, console.progress(), self.device)
        rows = [
            [
                f.name,
                Shown(Number.of(f.name, f.rate), str(f.rate)),
                Shown(f.need, f.bound),
                Shown(f.ok, "ok" if f.ok else "SHORT"),
                f.note,
            ]
            for f in figures
        ]
        console.table("The built-in world", ["figure", "seen", "needed", "", "note"], rows)
        return 0 if all(f.ok for f in figures) else 1
