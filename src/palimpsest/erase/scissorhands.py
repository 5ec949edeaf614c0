"""Scissorhands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

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
from palimpsest.toolbox.gradients import along, gradient, nearest, strongest
from palimpsest.toolbox.optimise import Recipe, optimise


@dataclass(frozen=True)
class ScissorHands:
    """Re-initialise the weights that the concept depends on most, then repair the rest.

    Wu & Harandi, "Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks",
    ECCV 2024, arXiv:2401.06187. *Trim*: the entries with the largest connection sensitivity
    |θ ⊙ ∇L| of the concept's denoising loss L are drawn anew. *Repair*: minimise
    ‖ε(x_r, c_r) − noise‖² + λ·L_u, with L_u = −L or the concept's relabelling, along the direction
    nearest to the gradient that does not undo the forgetting: ⟨g, ∇L_u⟩ ≥ 0.
    """

    steps: int = 300
    """Optimisation steps of the repair."""
    lr: float = 2e-5
    """Adam's learning rate."""
    share: float = 0.001
    """Share of all entries of `trim` that are re-initialised: those most sensitive."""
    trim: ParameterGroup = "full"
    """Which parameters are ranked and re-initialised."""
    train: ParameterGroup = "full"
    """Which parameters the repair moves."""
    passes: int = 10
    """Batches over which the sensitivity is summed."""
    forgetting: Literal["ascent", "relabel"] = "ascent"
    """L_u: `ascent` raises the concept's denoising loss (paper); `relabel` moves its prediction
    to that of the anchor (the authors' script for unsafe content)."""
    lamb: float = 0.1
    """Weight of L_u, λ."""
    guard: Literal["forgetting", "retaining", "nothing"] = "forgetting"
    """Which loss a step may not raise: L_u (paper), that of the pictures to retain, or none (the
    authors' scripts for Stable Diffusion)."""
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
        "unsafe": {
            "steps": 250,
            "lr": 1e-5,
            "share": 0.005,
            "forgetting": "relabel",
            "batch": 16,
        },
        "world": {
            "steps": 100,
            "lr": 2e-4,
            "share": 5e-5,
            "forgetting": "relabel",
            "lamb": 1.0,
            "batch": 8,
            "pictures": 32,
            "retain_pictures": 96,
            "sampling_steps": 20,
            "guidance": 3.0,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{wu2024scissorhands,
  title={Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks},
  author={Wu, Jing and Harandi, Mehrtash},
  booktitle={European Conference on Computer Vision},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, passes=1, lamb=0, batch=1, sampling_steps=1)
        at_least(self, pictures=1, retain_pictures=1)
        if not 0 < self.share <= 1:
            raise PalimpsestError(
                f"ScissorHands: share is {self.share}; it must be above 0 and at most 1"
            )

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts.

        Raises:
            PalimpsestError: nothing to retain is named, a folder that cannot be read, no parameter
                selected, or the edit changes nothing.
        """
        self.check(model, concepts)
        forget = to_forget(model, concepts, self, context)
        retain = to_retain(model, concepts, self, context)
        trimmed = self._trimmed(model, forget, context)
        fixed = {n: d for n, d in trimmed.items() if n not in model.parameters(self.train)}
        deltas = {
            name: trimmed.get(name, torch.zeros_like(p, dtype=torch.float32)).requires_grad_()
            for name, p in model.parameters(self.train).items()
        }
        student = model.student({**fixed, **deltas})

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            relabel = self.forgetting == "relabel"
            unlearning = relabelling(student, x_f) if relabel else -denoising(student, x_f)
            return self._guarded(denoising(student, x_r), unlearning, deltas)

        recipe = Recipe(steps=self.steps, lr=self.lr)
        optimise(loss, deltas, recipe, context=context, label="repairing")
        about = {"method": "scissorhands", "arguments": asdict(self)}
        return model.make_patch({**fixed, **deltas}, about)

    def check(self, model: Diffusion, concepts: Sequence[Concept]) -> None:
        """Refuse concepts for which there is nothing to learn from."""
        check_sources(concepts, self)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that the trim ranks or the repair moves, by parameter."""
        both = {**model.parameters(self.trim), **model.parameters(self.train)}
        return {name: p.numel() for name, p in both.items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        seen = self.steps * self.batch
        targets = seen if self.forgetting == "relabel" else 0
        return drawing(self) + targets, self.passes * self.batch + 2 * seen

    def _trimmed(self, model: Diffusion, forget: Examples, context: Context) -> dict[str, Tensor]:
        """The shifts that re-initialise the share of entries with the largest |θ ⊙ ∇L|."""
        weights = {n: p.float() for n, p in model.parameters(self.trim).items()}
        zeros = {n: torch.zeros_like(w, requires_grad=True) for n, w in weights.items()}
        student, g = model.student(zeros), generator(context.seed, 3)
        sensitivity = {name: torch.zeros_like(w) for name, w in weights.items()}
        for _ in range(self.passes):
            found = gradient(denoising(student, forget.batch(model, self.batch, g)), zeros)
            for name, part in found.items():
                sensitivity[name] += (weights[name] * part).abs()
        chosen = strongest(sensitivity, self.share)
        return {n: (fresh(n, w, g) - w) * chosen[n] for n, w in weights.items()}

    def _guarded(
        self, retaining: Tensor, unlearning: Tensor, deltas: Mapping[str, Tensor]
    ) -> Tensor:
        """L_r + λ·L_u; where a step along its gradient would raise the guarded loss, projected."""
        whole = retaining + self.lamb * unlearning
        if self.guard == "nothing":
            return whole
        g_r, g_u = gradient(retaining, deltas), gradient(unlearning, deltas)
        g = {name: g_r[name] + self.lamb * g_u[name] for name in deltas}
        return along(whole, deltas, nearest(g, g_u if self.guard == "forgetting" else g_r))


def fresh(name: str, weight: Tensor, g: torch.Generator) -> Tensor:
    """What a layer starts from before any training.

    Uniform in ±1/√(fan-in) for the weights of a layer (PyTorch's own start), 1 for the scale of a
    norm, 0 for a bias.
    """
    if weight.ndim < 2:
        return torch.full_like(weight, float(name.endswith(".weight")))
    bound = weight[0].numel() ** -0.5
    return ((2 * torch.rand(weight.shape, generator=g) - 1) * bound).to(weight.device)
