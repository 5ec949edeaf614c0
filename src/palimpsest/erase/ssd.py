"""Selective Synaptic Dampening, on CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.bibliography import cite
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Result, Task
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.toolbox.clip_losses import distance, loss_gradient
from palimpsest.toolbox.clip_training import ClipEraser

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SSD(ClipEraser):
    """Dampen the weights that matter far more to what is forgotten than to the rest.

    Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening", AAAI 2024, arXiv:2308.07707. With F the diagonal of the Fisher information, the mean
    square of each picture's gradient (of 1 − cos), entries with F_forget > α·F_retain become
    θ·min(1, ω·F_retain/F_forget).

    Traps: F is a mean over single pictures; the square of a batch's gradient is another thing.
    """

    alpha: float = 10.0
    """α: how much more an entry must matter to what is forgotten."""
    omega: float = 1.0
    """ω: how much of an entry is left."""
    pictures: int = 512
    """Pictures of either set whose gradients are taken, one by one, at most."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {"alpha": 3.0, "pictures": 96},
    }
    bibtex: ClassVar[str] = cite("foster2024fast")
    least: ClassVar = dict(alpha=0, omega=0, pictures=1)

    def erase(self, model: ContrastiveEncoder, task: Task, context: Context) -> Result:
        """Dampen by the task's forget and retain sets."""
        forget, retain = (
            self._fisher(model, pairs.shuffled(context.seed, self.pictures), context)
            for pairs in task.sets()[:2]
        )
        deltas = {}
        for name, weight in model.parameters().items():
            share = (self.omega * retain[name] / forget[name]).clamp(max=1)  # step: β of an entry
            chosen = forget[name] > self.alpha * retain[name]  # step: selection
            deltas[name] = torch.where(chosen, (share - 1) * weight.float(), 0.0)  # step: θ ← β·θ
        return Result(model.make_patch(deltas))

    def _fisher(
        self, model: ContrastiveEncoder, pairs: Pairs, context: Context
    ) -> dict[str, Tensor]:
        """Return the diagonal of the Fisher information: the mean square of single gradients."""
        weights = model.parameters()
        total = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in weights.items()}
        with context.progress.task("gradients", len(pairs)) as task:
            for i in range(len(pairs)):
                slope = loss_gradient(model, pairs[[i]], distance, [*weights], batch=1)
                for name, part in slope.items():
                    total[name] += part.square() / len(pairs)
                task.advance()
        return total
