"""Saliency Unlearning, on CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.methods import Context, Result, Task
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.toolbox.clip_losses import contrastive, distance, loss_gradient
from palimpsest.toolbox.clip_training import WORLD, ClipTrained, drawn, features
from palimpsest.toolbox.gradients import strongest

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SalUnCLIP(ClipTrained):
    """Caption what shall be forgotten as other things, moving only the most salient weights.

    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
    Image Classification and Generation", ICLR 2024, arXiv:2310.12508. The mask holds the entries
    with the largest |∇L_f|. CLIP has no classes to relabel by: the other label of a picture is the
    caption of a random picture to retain.

    Traps: weight decay moves entries that get no gradient, so the shift is masked as well.
    """

    retain: float = 1.0
    """Weight of CLIP's contrastive loss on the retain set."""
    saliency: float = 0.5
    """Share of all entries that may move."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {**WORLD, "lr": 2e-4, "retain": 0.05},
    }
    bibtex: ClassVar[str] = cite("fan2024salun")
    least: ClassVar = dict(retain=0)
    above: ClassVar = dict(saliency=0)
    most: ClassVar = dict(saliency=1)

    def erase(self, model: ContrastiveEncoder, task: Task, context: Context) -> Result:
        """Train the salient weights on the task's forget and retain sets."""
        forget, retain, _ = task.sets()
        retained = contrastive(model.scale)
        slope = loss_gradient(model, forget, distance, [*model.parameters()], batch=len(forget))
        saliency = {name: part.abs() for name, part in slope.items()}
        masks = strongest(saliency, self.saliency)  # step: saliency mask, |∇L_f| ≥ γ

        def loss(view: ContrastiveEncoder, g: torch.Generator) -> Tensor:
            gone, kept = (drawn(p, self.batch, g) for p in (forget, retain))
            other = drawn(retain, len(gone), g)  # step: random labelling
            image = view.image_features(gone.images[: len(other)])
            text = view.text_features(view.tokens(other.texts))
            return distance(image, text) + self.retain * retained(*features(view, kept))

        steps = self.steps_over(forget, min(self.batch, len(forget)))
        return self.train(model, loss, steps, context, masks)
