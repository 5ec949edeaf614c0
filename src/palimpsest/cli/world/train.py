"""`palimpsest world train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from palimpsest.cli import console, machine
from palimpsest.cli.tree import Call
from palimpsest.methods import Context
from palimpsest.models.devices import usable
from palimpsest.world import assets
from palimpsest.world.make.train import PARTS, Part, Steps, Training, train


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the world from nothing, part by part; a killed training goes on where it was."""

    part: tuple[Part, ...] = tuple(PARTS)
    """Which parts; a part whose weights lie in OUT is not trained again."""
    without: str | None = None
    """A concept that the U-Net shall never see: a gold model."""
    out: Path = assets.WEIGHTS
    """The folder of finished weights."""
    work: Path = Path("build/world")
    """The folder of pictures, latents and checkpoints; safe to delete afterwards."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes a GPU where there is one, else the CPU."""
    seed: int = 0
    """Fixes the initial weights and every draw."""
    steps: Steps = field(default_factory=Steps)
    """How long to train each part."""

    def __call__(self, call: Call) -> None:
        """Train, and say where the weights lie."""
        machine.silence()
        context = Context(
            seed=self.seed, folder=self.work, progress=console.progress(), tell=console.warn
        )
        where = Training(
            self.out, self.work, context, self.steps, usable(self.device), self.without
        )
        train(where, self.part)
        console.made(self.out)
