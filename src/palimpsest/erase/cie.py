"""Concept-irrelevant erasure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.demand import Demand, usual
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.correlation import Momentum, Original, correlation, original, sparsity
from palimpsest.toolbox.latents import Latents, ahead
from palimpsest.toolbox.optimise import Summing
from palimpsest.toolbox.shifting import Shifting

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class CiE(Summing, Shifting):
    """Turn what the concept's prompt adds to the prediction away from what it added before.

    Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947:
    the single-concept part of SRS-ME, without its weight decoupling. With
    r_{c,t} = ε(x_t, c) − ε(x_t, ∅) of each model, L = mean(r_trained ⊙ r_original) + λ·‖Δ‖₁/M.
    Adam at a constant rate; the momentum may stop it sooner.

    Traps: L_cor is signed, so it can go below zero and on: the threshold is what ends it. Without
    decoupling the empty prompt's own prediction moves, too.
    """

    steps: int = 1000
    lr: float = 1e-6
    sparsity: float = 3e-5
    """λ: weight of the shift's L1 norm."""
    threshold: float = 0.0
    """τ: training stops when the momentum of L_cor is no higher, after ten steps at the least."""
    latents: Latents = Latents("student", steps=50, guidance=3.0, batch=1)
    """Where x_t comes from: the `student` or the `frozen` model, as ESD does, or `noised` pictures,
    as the authors' code does."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "steps": 100,
            "lr": 1e-4,
            "threshold": -1.0,
            "gradients": "fresh",
            "latents": Latents("noised", steps=20, batch=8, wordings="sentences"),
        },
    }
    train: ClassVar[ParameterGroup] = "xattn"
    """Which parameters move."""
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "an empty prompt"})
    bibtex: ClassVar[str] = cite("zhao2024separable")
    least: ClassVar = dict(sparsity=0)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        deltas = model.shifts(self.train)
        student, momentum = model.student(deltas), Momentum(self.threshold)
        latents, empty = self.latents.of(model, task.concepts, context), model.empty()

        def ask(gs: list[torch.Generator]) -> Original:
            return original(model, empty, *latents.reach([latents.start(g) for g in gs], student))

        asked = ahead(ask, steps=self.steps, stretch=latents.stretch, context=context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            cor = correlation(student, Original(*asked(step)), empty).mean()  # L_cor, eq. 5
            momentum.update(cor)
            return cor + self.sparsity * sparsity(deltas)

        momentum.descend(loss, deltas, self.recipe, context, "erasing")
        return Result(model.make_patch(deltas))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_ == "lora" and self.sparsity:
            raise PalimpsestError(
                "CiE: the L1 norm is that of a dense shift, not of factors; set sparsity to 0 with "
                "as_ 'lora'"
            )

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        return replace(usual(self), graded=2 * self.latents.batch)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, if nothing stops it."""
        asked = self.steps * self.latents.batch
        return self.latents.evaluations(self.steps) + 2 * asked, 2 * asked
