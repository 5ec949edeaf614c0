"""Saliency Unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.demand import Demand
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.denoising import Examples, ForgetAndRetain, denoising, relabelling
from palimpsest.toolbox.gradients import gradient, strongest
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import Drawn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SalUn(ForgetAndRetain, Eraser):
    """Relabel the concept, moving only the weights that its loss depends on most.

    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
    Image Classification and Generation", ICLR 2024, arXiv:2310.12508. With x_f a picture of the
    concept, c_f its prompt, c_other another prompt, sg the stop-gradient and m the mask of the
    weights with the largest |∇| of the concept's denoising loss, minimise
    ‖ε(x_f, c_f) − sg ε(x_f, c_other)‖² + α·‖ε(x_r, c_r) − noise‖² over θ₀ + m ⊙ Δ.

    Traps: the mask is made without guidance, where the authors' code has it. Gradients are summed
    over the pictures before their signs are dropped, so a weight that every picture pulls another
    way is not salient. One version of the authors' script keeps the smallest gradients.
    """

    steps: int = 500
    lr: float = 1e-5
    alpha: float = 0.5
    """Weight of the denoising loss on the pictures to retain, α."""
    saliency: float = 0.5
    """Share of all trained entries that may move: those with the largest gradient."""
    train: ParameterGroup = "full"
    """Which parameters the mask is taken over."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unsafe": {"steps": 100, "alpha": 0.1},
        "world": {
            "steps": 60,
            "lr": 2e-4,
            "forget": Drawn(32, steps=20, guidance=3.0),
            "retain": Drawn(96, steps=20, guidance=3.0),
        },
    }
    lacks: ClassVar[dict[str, str]] = {
        "as_": "its mask is of single entries of a dense shift, and a product of factors has none"
    }
    bibtex: ClassVar[str] = cite("fan2024salun")
    least: ClassVar = dict(alpha=0)
    above: ClassVar = dict(saliency=0)
    most: ClassVar = dict(saliency=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift: each concept is relabelled as its anchor, or ∅ if it has none.

        Raises:
            PalimpsestError: nothing to retain is named, a folder that cannot be read, no parameter
                selected, or the edit changes nothing.
        """
        forget, retain = self.examples(model, task, context)
        deltas = model.shifts(self.train)
        student = model.student(deltas)
        for name, m in self._mask(student, deltas, forget, context).items():
            # θ₀ + m ⊙ Δ, the saliency-based update: Adam leaves an entry without gradient at zero
            deltas[name].register_hook(m.mul)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            # the paper's loss for generation
            return relabelling(student, x_f) + self.alpha * denoising(student, x_r)

        optimise(loss, deltas, Recipe(self.steps, self.lr), context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        return Demand(2 * self.batch, plain=self.batch, beside=1)  # the mask

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        seen = self.steps * self.batch
        return self.drawing + seen, self.forget.pictures + 2 * seen

    def _mask(
        self, student: Diffusion, deltas: dict[str, Tensor], forget: Examples, context: Context
    ) -> dict[str, Tensor]:
        """Return the mask m: the largest |∇L|, L the denoising loss over all pictures to forget."""
        total = {name: torch.zeros_like(d) for name, d in deltas.items()}
        for x_f in forget.passes(student, self.batch, context.stream("mask")):
            found = gradient(len(x_f.t) * denoising(student, x_f), deltas)
            for name, part in found.items():
                total[name] += part
        # the paper's saliency map: 1 where |∇L| reaches the threshold
        return strongest({name: part.abs_() for name, part in total.items()}, self.saliency)
