"""Saliency Unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import ParameterGroup
from palimpsest.core.streams import generator
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.denoising import (
    Examples,
    check_sources,
    denoising,
    drawing,
    relabelling,
    to_forget,
    to_retain,
)
from palimpsest.toolbox.gradients import gradient, strongest
from palimpsest.toolbox.optimise import Recipe, optimise


@dataclass(frozen=True)
class SalUn:
    """Relabel the concept, moving only the weights that its loss depends on most.

    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
    Image Classification and Generation", ICLR 2024, arXiv:2310.12508. With x_f a picture of the
    concept, c_f its prompt, c_other another prompt, sg the stop-gradient and m the mask of the
    weights with the largest |∇| of the concept's denoising loss, minimise
    ‖ε(x_f, c_f) − sg ε(x_f, c_other)‖² + α·‖ε(x_r, c_r) − noise‖² over θ₀ + m ⊙ Δ.
    """

    steps: int = 500
    """Optimisation steps."""
    lr: float = 1e-5
    """Adam's learning rate."""
    alpha: float = 0.5
    """Weight of the denoising loss on the pictures to retain, α."""
    saliency: float = 0.5
    """Share of all trained entries that may move: those with the largest gradient."""
    train: ParameterGroup = "full"
    """Which parameters the mask is taken over."""
    batch: int = 8
    """Pictures to forget, and as many to retain, in a step."""
    pictures: int = 800
    """How many pictures of the concept are drawn once, before training."""
    retain_pictures: int = 800
    """How many pictures of what the concept keeps are drawn once, before training."""
    forget_folder: str | None = None
    """A folder of pictures of the concept, instead of drawn ones."""
    retain_folder: str | None = None
    """A folder of pictures to retain, captioned in its metadata.jsonl, instead of drawn ones."""
    sampling_steps: int = 50
    """Steps of DDIM for the drawn pictures."""
    guidance: float = 7.5
    """Guidance of the drawn pictures."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "unsafe": {"steps": 100, "alpha": 0.1},
        "world": {
            "steps": 60,
            "lr": 2e-4,
            "pictures": 32,
            "retain_pictures": 96,
            "sampling_steps": 20,
            "guidance": 3.0,
        },
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
        at_least(self, steps=1, lr=0, alpha=0, batch=1, sampling_steps=1)
        at_least(self, pictures=1, retain_pictures=1)
        if not 0 < self.saliency <= 1:
            raise PalimpsestError(
                f"SalUn: saliency is {self.saliency}; it must be above 0 and at most 1"
            )

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts: each is relabelled as its anchor, or the empty prompt if it has none.

        Raises:
            PalimpsestError: nothing to retain is named, a folder that cannot be read, no parameter
                selected, or the edit changes nothing.
        """
        self.check(model, concepts)
        forget = to_forget(model, concepts, self, context)
        retain = to_retain(model, concepts, self, context)
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in model.parameters(self.train).items()
        }
        student = model.student(deltas)
        for name, mask in self._mask(student, deltas, forget, context).items():
            deltas[name].register_hook(mask.mul)  # without a gradient Adam leaves an entry at zero

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            return relabelling(student, x_f) + self.alpha * denoising(student, x_r)

        recipe = Recipe(steps=self.steps, lr=self.lr)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return model.make_patch(deltas, {"method": "salun", "arguments": asdict(self)})

    def check(self, model: Diffusion, concepts: Sequence[Concept]) -> None:
        """Refuse concepts for which there is nothing to learn from."""
        check_sources(concepts, self)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that the mask is taken over, by parameter."""
        return {name: p.numel() for name, p in model.parameters(self.train).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        seen = self.steps * self.batch
        return drawing(self) + seen, self.pictures + 2 * seen

    def _mask(
        self, student: Diffusion, deltas: dict[str, Tensor], forget: Examples, context: Context
    ) -> dict[str, Tensor]:
        """The mask m: the largest |∇L|, L the denoising loss over all pictures to forget."""
        total = {name: torch.zeros_like(d) for name, d in deltas.items()}
        for batch in forget.passes(student, self.batch, generator(context.seed, 3)):
            found = gradient(len(batch.t) * denoising(student, batch), deltas)
            for name, part in found.items():
                total[name] += part
        return strongest({name: part.abs() for name, part in total.items()}, self.saliency)
