"""Gradient ascent on what is forgotten, with or without fine-tuning on what is retained."""

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
from palimpsest.toolbox.clip_losses import contrastive, distance
from palimpsest.toolbox.clip_training import drawn, features, steps_of, trained
from palimpsest.toolbox.optimise import Recipe


@dataclass(frozen=True)
class GradientAscent:
    """Train CLIP to part the names and pictures that it shall forget (GA, GA+FT).

    The baseline of Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine
    Unlearning", EuroS&P 2022, arXiv:2109.13398: ascent on L_f = mean(1 − cos), which falls as name
    and picture agree; and, weighed by `retain`, descent on CLIP's contrastive loss over the rest.
    """

    epochs: int = 10
    """How often each picture to forget is met."""
    lr: float = 1e-6
    """AdamW's learning rate."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    batch: int = 64
    """Pictures of either set a step; the contrastive loss depends on it."""
    retain: float = 0.0
    """Weight of the retain loss: 0 is GA, 1 is GA+FT."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "with_retain": {"retain": 1.0},
        "world": {"lr": 3e-5},
        "world_with_retain": {"lr": 1e-4, "retain": 1.0},
    }
    bibtex: ClassVar[str] = """@inproceedings{thudi2022unrolling,
  title={Unrolling {SGD}: Understanding Factors Influencing Machine Unlearning},
  author={Thudi, Anvith and Deza, Gabriel and Chandrasekaran, Varun and Papernot, Nicolas},
  booktitle={IEEE European Symposium on Security and Privacy},
  year={2022}
}"""

    def __post_init__(self) -> None:
        at_least(self, epochs=1, lr=0, weight_decay=0, batch=2, retain=0)

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names.

        Raises:
            PalimpsestError: sets that cannot serve, or the edit changes nothing.
        """
        lesson.check()
        retained = contrastive(model.scale)

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            value = -distance(*features(view, drawn(lesson.forget, self.batch, g)))
            if not self.retain:
                return value
            kept = retained(*features(view, drawn(lesson.retain, self.batch, g)))
            return value + self.retain * kept

        steps = steps_of(lesson.forget, min(self.batch, len(lesson.forget)), self.epochs)
        recipe = Recipe(steps, self.lr, optimizer="adamw", weight_decay=self.weight_decay)
        about = {"method": "gradient_ascent", "arguments": asdict(self)}
        return trained(model, loss, recipe, about, context)
