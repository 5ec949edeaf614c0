"""Saliency Unlearning, on CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.data.pairs import Lesson
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import contrastive, distance, loss_gradient
from palimpsest.toolbox.clip_training import drawn, features, steps_of, trained
from palimpsest.toolbox.gradients import strongest
from palimpsest.toolbox.optimise import Recipe


@dataclass(frozen=True)
class SalUn:
    """Caption what shall be forgotten as other things, moving only the most salient weights.

    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
    Image Classification and Generation", ICLR 2024, arXiv:2310.12508. The mask holds the entries
    with the largest |∇L_f|. CLIP has no classes to relabel by: the other label of a picture is the
    caption of a random picture to retain.
    """

    epochs: int = 10
    """How often each picture to forget is met."""
    lr: float = 1e-6
    """AdamW's learning rate."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    batch: int = 64
    """Pictures of either set a step; the contrastive loss depends on it."""
    retain: float = 1.0
    """Weight of CLIP's contrastive loss on the retain set."""
    saliency: float = 0.5
    """Share of all entries that may move."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"lr": 2e-4, "retain": 0.05},
    }
    bibtex: ClassVar[str] = """@inproceedings{fan2024salun,
  title={{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
         Classification and Generation},
  author={Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis
          and Liu, Sijia},
  booktitle={International Conference on Learning Representations},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, epochs=1, lr=0, weight_decay=0, batch=2, retain=0)
        if not 0 < self.saliency <= 1:
            raise PalimpsestError(
                f"SalUn: saliency is {self.saliency}; it must be above 0 and at most 1"
            )

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names.

        Raises:
            PalimpsestError: sets that cannot serve, or the edit changes nothing.
        """
        lesson.check()
        retained, forget = contrastive(model.scale), lesson.forget
        slope = loss_gradient(model, forget, distance, [*model.parameters()], batch=len(forget))
        masks = strongest({name: part.abs() for name, part in slope.items()}, self.saliency)

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            gone, kept = (drawn(p, self.batch, g) for p in (forget, lesson.retain))
            other = drawn(lesson.retain, len(gone), g)
            image = view.image_features(gone.images[: len(other)])
            text = view.text_features(view.tokens(other.texts))
            return distance(image, text) + self.retain * retained(*features(view, kept))

        steps = steps_of(forget, min(self.batch, len(forget)), self.epochs)
        recipe = Recipe(steps, self.lr, optimizer="adamw", weight_decay=self.weight_decay)
        about = {"method": "salun", "arguments": asdict(self)}
        return trained(model, loss, recipe, about, context, masks)
