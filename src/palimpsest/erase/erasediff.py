"""EraseDiff."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.demand import Demand
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.denoising import Noised, Restarting, denoising, relabelling
from palimpsest.toolbox.gradients import along, dot, gradient, nearest
from palimpsest.toolbox.lower_level import lowest
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import Drawn
from palimpsest.toolbox.shifting import Shifting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EraseDiff(Restarting, Shifting):
    """Retain what is to be kept, among the models that have forgotten the concept.

    Wu et al., "Erasing Undesirable Influence in Diffusion Models", CVPR 2025, arXiv:2401.05779.
    Of two levels: minimise L_r(θ) subject to θ minimising L_f. With θᴷ reached from θ by K steps on
    L_f alone, the lower level reads L_f(θ) − L_f(θᴷ) ≤ 0, and θ moves by the gradient of
    L_r(θ) + λ·(L_f(θ) − L_f(θᴷ)), θᴷ being held constant.
    L_f = ‖ε(x_f, c_f) − sg ε(x_f, c_other)‖² and L_r = ‖ε(x_r, c_r) − noise‖².

    Traps: K changes the loss that is shown and nothing else; in the authors' code it leaks into the
    result, because the inner steps share the outer Adam. As published every step takes the same
    pictures, and more of them than a batch change nothing. Under `noxattn` the text is read as
    before, so the concept is unlearnt where the picture is made.
    """

    steps: int = 60
    lr: float = 1e-5
    inner_steps: int = 2
    """K: Adam steps of the lower level at the same rate, from θ and back to it. They find the
    constant L_f(θᴷ), which shows in the loss and not in its gradient: every K makes the same patch,
    and 0, which leaves the constant out, makes it fastest."""
    lamb: float = 1.0
    """λ: weight of forgetting; for `adaptive`, the share of ‖∇L_f‖² that a step must go along."""
    weighting: Literal["fixed", "adaptive"] = "fixed"
    """`fixed` adds the two losses (the authors' commands); `adaptive` takes the direction nearest
    to ∇L_r that lowers L_f enough (the paper's constraint)."""
    train: ParameterGroup = "noxattn"
    batch: int = 16
    forget: Drawn = Drawn(16)
    retain: Drawn = Drawn(16)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "class": {"inner_steps": 1, "train": "full", "first_batch": "forget", "retain": Drawn(800)},
        "world": {
            "first_batch": "neither",
            "steps": 60,
            "lr": 2e-4,
            "inner_steps": 0,
            "batch": 8,
            "forget": Drawn(32, steps=20, guidance=3.0),
            "retain": Drawn(96, steps=20, guidance=3.0),
        },
    }
    bibtex: ClassVar[str] = cite("wu2025erasing")
    least: ClassVar = dict(inner_steps=0, lamb=0)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift: each concept is relabelled as its anchor, or ∅ if it has none.

        Raises:
            PalimpsestError: nothing to retain is named, a folder that cannot be read, no parameter
                selected, or the edit changes nothing.
        """
        forget, retain = self.examples(model, task, context)
        deltas = model.shifts(self.train)
        student = model.student(deltas)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            low = self._lowest(student, deltas, x_f)
            # L_f(θ) − L_f(θᴷ), the constraint by the lower level's value function
            excess = relabelling(student, x_f) - low
            return self._upper(denoising(student, x_r), excess, deltas)

        optimise(loss, deltas, Recipe(self.steps, self.lr), context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        own = Demand(2 * self.batch, plain=self.batch)
        return replace(own, inner=20 if self.inner_steps else 0)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        seen, inner = self.steps * self.batch, self.inner_steps
        targets = 1 + (inner + 2 if inner else 0)  # of L_f; of the inner steps and L_f(θᴷ)
        return self.drawing + targets * seen, (2 + inner) * seen

    def _lowest(self, student: Diffusion, deltas: Mapping[str, Tensor], x_f: Noised) -> Tensor:
        """Return L_f(θᴷ), K steps of Adam down from θ; 0 without a lower level."""
        if self.inner_steps == 0:
            return torch.zeros(())
        how = self.inner_steps, self.lr, student.resting
        return lowest(lambda: relabelling(student, x_f), deltas, *how)  # θ¹, …, θᴷ

    def _upper(self, retained: Tensor, excess: Tensor, deltas: Mapping[str, Tensor]) -> Tensor:
        """Return L_r + λ·(L_f − L_f(θᴷ)), for `adaptive` with the constrained step's gradient."""
        whole = retained + self.lamb * excess
        if self.weighting == "fixed":
            return whole  # their code's loss
        # the paper's step: argmin ‖δ − ∇L_r‖² subject to ⟨δ, ∇L_f⟩ ≥ λ·‖∇L_f‖²
        g_r, g_f = gradient(retained, deltas), gradient(excess, deltas)
        return along(whole, deltas, nearest(g_r, g_f, self.lamb * dot(g_f, g_f)))
