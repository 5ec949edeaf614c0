"""Scissorhands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.denoising import Examples, Restarting, denoising, relabelling
from palimpsest.toolbox.gradients import Tensors, along, gradient, nearest, strongest
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import Drawn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScissorHands(Restarting, Eraser):
    """Re-initialise the weights that the concept depends on most, then repair the rest.

    Wu & Harandi, "Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks",
    ECCV 2024, arXiv:2401.06187. *Trim*: the entries with the largest connection sensitivity
    |θ ⊙ ∇L| of the concept's denoising loss L are drawn anew. *Repair*: minimise
    ‖ε(x_r, c_r) − noise‖² + λ·L_u, with L_u = −L or the concept's relabelling, along the direction
    nearest to the gradient that does not undo the forgetting: ⟨g, ∇L_u⟩ ≥ 0. The defaults, which
    are the authors' commands for Stable Diffusion, do not project.

    Traps: a weight that every picture needs ranks high for the concept too, so a larger share means
    more to repair. Ascent has no floor: λ and the number of steps alone bound it. Under `ascent`
    the anchor is not used. As published every step takes the same pictures to forget.
    """

    steps: int = 360
    lr: float = 2e-5
    share: float = 0.001
    """Share of all entries of `trim` that are chosen: those most sensitive."""
    trim: ParameterGroup = "full"
    """Which parameters are ranked."""
    redrawn: ParameterGroup = "decoder-selfattn"
    """Which of them are re-initialised where they are chosen; the others stay."""
    train: ParameterGroup = "full"
    """Which parameters the repair moves."""
    passes: int = 10
    """Batches over which the sensitivity is summed."""
    forgetting: Literal["ascent", "relabel"] = "ascent"
    """L_u: `ascent` raises the concept's denoising loss (paper); `relabel` moves its prediction
    to that of the anchor (the authors' script for unsafe content)."""
    lamb: float = 0.1
    """Weight of L_u, λ."""
    guard: Literal["forgetting", "retaining", "nothing"] = "nothing"
    """Which loss a step may not raise: L_u (paper), that of the pictures to retain, or none (the
    authors' commands for Stable Diffusion)."""
    first_batch: Literal["both", "forget", "neither"] = "forget"
    forget: Drawn = Drawn(8)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unsafe": {
            "steps": 250,
            "lr": 1e-5,
            "share": 0.005,
            "forgetting": "relabel",
            "batch": 16,
            "first_batch": "both",
            "forget": Drawn(16),
            "retain": Drawn(16),
        },
        "world": {
            "steps": 100,
            "lr": 2e-4,
            "share": 5e-5,
            "redrawn": "full",
            "forgetting": "relabel",
            "guard": "forgetting",
            "first_batch": "neither",
            "lamb": 1.0,
            "forget": Drawn(32, steps=20, guidance=3.0),
            "retain": Drawn(96, steps=20, guidance=3.0),
        },
    }
    lacks: ClassVar[dict[str, str]] = {
        "as_": "what it draws anew are single entries of weights, and no product of factors is that"
    }
    bibtex: ClassVar[str] = cite("wu2024scissorhands")
    least: ClassVar = dict(passes=1, lamb=0)
    above: ClassVar = dict(share=0)
    most: ClassVar = dict(share=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Trim, then repair.

        Raises:
            PalimpsestError: nothing to retain is named, a folder that cannot be read, no parameter
                selected, or the edit changes nothing.
        """
        forget, retain = self.examples(model, task, context)
        trimmed = self._trimmed(model, forget, context)
        deltas = {
            name: trimmed.get(name, zero).requires_grad_()
            for name, zero in model.shifts(self.train).items()
        }
        fixed = {n: d for n, d in trimmed.items() if n not in deltas}
        student = model.student({**fixed, **deltas})

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            relabel = self.forgetting == "relabel"
            unlearning = relabelling(student, x_f) if relabel else -denoising(student, x_f)  # L_u
            return self._guarded(denoising(student, x_r), unlearning, deltas)

        optimise(loss, deltas, Recipe(self.steps, self.lr), context=context, label="repairing")
        return Result(model.make_patch({**fixed, **deltas}))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse also a trim that ranks nothing of what is to be re-initialised."""
        super().check(model, task)
        if not model.sizes(self.trim).keys() & model.sizes(self.redrawn).keys():
            raise PalimpsestError(f"redrawn {self.redrawn!r} lies outside trim; set trim to full")

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries that the trim ranks or the repair moves, by parameter."""
        return {**model.sizes(self.trim), **model.sizes(self.train)}

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        relabels = self.forgetting == "relabel"
        return Demand(2 * self.batch, plain=self.batch if relabels else 0)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        seen = self.steps * self.batch
        targets = seen if self.forgetting == "relabel" else 0
        return self.drawing + targets, self.passes * self.batch + 2 * seen

    def _trimmed(self, model: Diffusion, forget: Examples, context: Context) -> dict[str, Tensor]:
        """Return the shifts that re-initialise the entries with the largest |θ ⊙ ∇L|."""
        theta, zeros = model.parameters(self.trim), model.shifts(self.trim)
        student, g = model.student(zeros), context.stream("trim")
        s = {n: torch.zeros_like(zero) for n, zero in zeros.items()}
        for _ in range(self.passes):
            found = gradient(denoising(student, forget.batch(model, self.batch, g)), zeros)
            for n, part in found.items():
                s[n] += (theta[n].float() * part).abs()  # step: connection sensitivity (SNIP)
        chosen = strongest(s, self.share)  # step: trim, the top share
        cut = model.sizes(self.redrawn)
        return {
            n: (fresh(n, w.float(), g) - w.float()) * chosen[n]
            for n, w in theta.items()
            if n in cut
        }

    def _guarded(self, retaining: Tensor, unlearning: Tensor, deltas: Tensors) -> Tensor:
        """Return L_r + λ·L_u; a step along its gradient does not raise the guarded loss."""
        whole = retaining + self.lamb * unlearning
        if self.guard == "nothing":
            return whole
        g_r, g_u = gradient(retaining, deltas), gradient(unlearning, deltas)
        g = {name: g_r[name] + self.lamb * g_u[name] for name in deltas}
        h = g_u if self.guard == "forgetting" else g_r
        return along(whole, deltas, nearest(g, h))  # step: repair, the nearest δ with ⟨δ, h⟩ ≥ 0


def fresh(name: str, weight: Tensor, g: torch.Generator) -> Tensor:
    """Draw what a layer starts from before any training.

    Uniform in ±1/√(fan-in) for the weights of a layer (PyTorch's own start), 1 for the scale of a
    norm, 0 for a bias.
    """
    if weight.ndim < 2:
        return torch.full_like(weight, float(name.endswith(".weight")))
    bound = weight[0].numel() ** -0.5
    return ((2 * torch.rand(weight.shape, generator=g) - 1) * bound).to(weight.device)
