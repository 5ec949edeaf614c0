"""Gradient ascent on what is forgotten, with or without fine-tuning on what is retained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.methods import Context, Result, Task
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.toolbox.clip_losses import contrastive, distance
from palimpsest.toolbox.clip_training import WORLD, ClipTrained, drawn, features

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class GradientAscent(ClipTrained):
    """Train CLIP to part the names and pictures that it shall forget (GA, GA+FT).

    The baseline of Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine
    Unlearning", EuroS&P 2022, arXiv:2109.13398: ascent on L_f = mean(1 − cos), which falls as name
    and picture agree; and, weighed by `retain`, descent on CLIP's contrastive loss over the rest.

    Traps: nothing bounds the ascent, so without `retain` the other classes go, too.
    """

    retain: float = 0.0
    """Weight of the retain loss: 0 is GA, 1 is GA+FT."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "with_retain": {"retain": 1.0},
        "world": {**WORLD, "lr": 3e-5},
        "world_with_retain": {**WORLD, "lr": 1e-4, "retain": 1.0},
    }
    bibtex: ClassVar[str] = cite("thudi2022unrolling")
    least: ClassVar = dict(retain=0)

    def erase(self, model: ContrastiveEncoder, task: Task, context: Context) -> Result:
        """Train on the task's forget set, and on its retain set if `retain` is not 0."""
        forget, retain, _ = task.sets()
        retained = contrastive(model.scale)

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            value = -distance(*features(view, drawn(forget, self.batch, g)))  # step: ascent on L_f
            if not self.retain:
                return value
            kept = retained(*features(view, drawn(retain, self.batch, g)))
            return value + self.retain * kept  # −L_f + retain·L_r

        steps = self.steps_over(forget, min(self.batch, len(forget)))
        return self.train(model, loss, steps, context)
