"""Fine-tuning on what is retained: the least that a method must beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.errors import at_least
from palimpsest.data.pairs import Lesson
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import contrastive
from palimpsest.toolbox.clip_training import drawn, features, steps_of, trained
from palimpsest.toolbox.optimise import Recipe


@dataclass(frozen=True)
class FineTune:
    """Go on training CLIP on everything but what it shall forget (FT).

    The baseline of Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023,
    arXiv:2108.11577, with CLIP's contrastive loss over the retain set.
    """

    epochs: int = 10
    """How often each retained picture is met."""
    lr: float = 1e-6
    """AdamW's learning rate."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    batch: int = 64
    """Pictures a step; the contrastive loss depends on it."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"epochs": 5, "lr": 1e-4},
    }
    bibtex: ClassVar[str] = """@inproceedings{warnecke2023machine,
  title={Machine Unlearning of Features and Labels},
  author={Warnecke, Alexander and Pirch, Lukas and Wressnegger, Christian and Rieck, Konrad},
  booktitle={Network and Distributed System Security Symposium},
  year={2023}
}"""

    def __post_init__(self) -> None:
        at_least(self, epochs=1, lr=0, weight_decay=0, batch=2)

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names.

        Raises:
            PalimpsestError: sets that cannot serve, or the edit changes nothing.
        """
        lesson.check()
        retained = contrastive(model.scale)

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            return retained(*features(view, drawn(lesson.retain, self.batch, g)))

        steps = steps_of(lesson.retain, self.batch, self.epochs)
        recipe = Recipe(steps, self.lr, optimizer="adamw", weight_decay=self.weight_decay)
        return trained(
            model, loss, recipe, {"method": "fine_tune", "arguments": asdict(self)}, context
        )
