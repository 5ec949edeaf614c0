"""Fine-tuning on what is retained: the least that a method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.core.bibliography import cite
from palimpsest.methods import Context, Result, Task
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.toolbox.clip_losses import contrastive
from palimpsest.toolbox.clip_training import WORLD, ClipTrained, drawn, features

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class FineTune(ClipTrained):
    """Go on training CLIP on everything but what it shall forget (FT).

    The baseline of Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023,
    arXiv:2108.11577, with CLIP's contrastive loss over the retain set.

    Traps: nothing in the loss asks for forgetting, so a small learning rate forgets nothing, and a
    large one harms what is retained first.
    """

    schedule: Literal["constant", "cosine"] = "cosine"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {**WORLD, "epochs": 5, "lr": 1e-4, "schedule": "constant"},
    }
    bibtex: ClassVar[str] = cite("warnecke2023machine")

    def erase(self, model: ContrastiveEncoder, task: Task, context: Context) -> Result:
        """Train on the task's retain set."""
        _, retain, _ = task.sets()
        retained = contrastive(model.scale)

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            return retained(*features(view, drawn(retain, self.batch, g)))  # step: descent on L_r

        return self.train(model, loss, self.steps_over(retain, self.batch), context)
