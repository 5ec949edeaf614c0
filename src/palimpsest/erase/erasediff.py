"""EraseDiff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.denoising import (
    Noised,
    check_sources,
    denoising,
    drawing,
    relabelling,
    to_forget,
    to_retain,
)
from palimpsest.toolbox.gradients import along, dot, gradient, nearest
from palimpsest.toolbox.optimise import Recipe, optimise


@dataclass(frozen=True)
class EraseDiff:
    """Retain what is to be kept, among the models that have forgotten the concept.

    Wu et al., "Erasing Undesirable Influence in Diffusion Models", CVPR 2025, arXiv:2401.05779.
    Of two levels: minimise L_r(θ) subject to θ minimising L_f. With θᴷ reached from θ by K steps on
    L_f alone, the lower level reads L_f(θ) − L_f(θᴷ) ≤ 0, and θ moves by the gradient of
    L_r(θ) + λ·(L_f(θ) − L_f(θᴷ)), θᴷ being held constant.
    L_f = ‖ε(x_f, c_f) − sg ε(x_f, c_other)‖² and L_r = ‖ε(x_r, c_r) − noise‖².
    """

    steps: int = 160
    """Optimisation steps of the upper level."""
    lr: float = 1e-5
    """Adam's learning rate, at both levels."""
    inner_steps: int = 2
    """K: steps of the lower level, from θ and back to it. They find the constant L_f(θᴷ), which
    shows in the loss and not in its gradient: every K makes the same patch, and 0, which leaves
    the constant out, makes it fastest."""
    lamb: float = 1.0
    """λ: weight of forgetting; for `adaptive`, the share of ‖∇L_f‖² that a step must go along."""
    weighting: Literal["fixed", "adaptive"] = "fixed"
    """`fixed` adds the two losses (the authors' commands); `adaptive` takes the direction nearest
    to ∇L_r that lowers L_f enough (the paper's constraint)."""
    train: ParameterGroup = "noxattn"
    """Which parameters move."""
    batch: int = 16
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
        "class": {"steps": 60, "inner_steps": 1, "train": "full"},
        "world": {
            "steps": 60,
            "lr": 2e-4,
            "inner_steps": 0,
            "batch": 8,
            "pictures": 32,
            "retain_pictures": 96,
            "sampling_steps": 20,
            "guidance": 3.0,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{wu2025erasing,
  title={Erasing Undesirable Influence in Diffusion Models},
  author={Wu, Jing and Le, Trung and Hayat, Munawar and Harandi, Mehrtash},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2025}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, inner_steps=0, lamb=0, batch=1, sampling_steps=1)
        at_least(self, pictures=1, retain_pictures=1)

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

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_f, x_r = forget.batch(model, self.batch, g), retain.batch(model, self.batch, g)
            excess = relabelling(student, x_f) - self._lowest(model, deltas, x_f)
            return self._upper(denoising(student, x_r), excess, deltas)

        recipe = Recipe(steps=self.steps, lr=self.lr)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return model.make_patch(deltas, {"method": "erasediff", "arguments": asdict(self)})

    def check(self, model: Diffusion, concepts: Sequence[Concept]) -> None:
        """Refuse concepts for which there is nothing to learn from."""
        check_sources(concepts, self)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {name: p.numel() for name, p in model.parameters(self.train).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        seen, inner = self.steps * self.batch, self.inner_steps
        targets = 1 + (inner + 2 if inner else 0)  # of L_f; of the inner steps and L_f(θᴷ)
        return drawing(self) + targets * seen, (2 + inner) * seen

    def _lowest(self, model: Diffusion, deltas: Mapping[str, Tensor], x_f: Noised) -> Tensor:
        """L_f(θᴷ), K steps of Adam down from θ: on a copy, so that θ and its optimiser stay."""
        if self.inner_steps == 0:
            return torch.zeros(())
        copies = {name: d.detach().clone().requires_grad_() for name, d in deltas.items()}
        student, adam = model.student(copies), torch.optim.Adam(copies.values(), lr=self.lr)
        for _ in range(self.inner_steps):
            adam.zero_grad()
            relabelling(student, x_f).backward()
            adam.step()
        with torch.no_grad():
            return relabelling(student, x_f)

    def _upper(self, retained: Tensor, excess: Tensor, deltas: Mapping[str, Tensor]) -> Tensor:
        """L_r + λ·(L_f − L_f(θᴷ)), or its value with the direction of the paper's constraint."""
        whole = retained + self.lamb * excess
        if self.weighting == "fixed":
            return whole
        # argmin ‖δ − ∇L_r‖² subject to ⟨δ, ∇L_f⟩ ≥ λ·‖∇L_f‖²
        g_r, g_f = gradient(retained, deltas), gradient(excess, deltas)
        return along(whole, deltas, nearest(g_r, g_f, self.lamb * dot(g_f, g_f)))
