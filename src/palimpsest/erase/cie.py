"""Concept-irrelevant erasure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.correlation import Momentum, Original, correlation, original, sparsity
from palimpsest.toolbox.latents import Ahead, Latents, LatentSource, check_folder
from palimpsest.toolbox.optimise import Recipe, optimise


@dataclass(frozen=True)
class CiE:
    """Turn what the concept's prompt adds to the prediction away from what it added before.

    Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947:
    the single-concept part of SRS-ME, without its weight decoupling. With
    r_{c,t} = ε(x_t, c) − ε(x_t, ∅) of each model, L = mean(r_trained ⊙ r_original) + λ·‖Δ‖₁/M.
    """

    steps: int = 1000
    """Optimisation steps at most; the momentum may stop it sooner."""
    lr: float = 1e-6
    """Adam's learning rate."""
    sparsity: float = 3e-5
    """λ: weight of the shift's L1 norm."""
    threshold: float = 0.0
    """τ: training stops when the momentum of L_cor is no higher, after ten steps at the least."""
    latents: LatentSource = "student"
    """Where x_t comes from: sampled by the model under training or by the frozen one, as ESD does,
    or pictures of the concept with noise added, as the authors' code does."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that x_t is sampled on."""
    guidance: float = 3.0
    """Guidance that x_t, or the pictures for `noised`, are sampled with."""
    batch: int = 1
    """Latents a step."""
    pictures: int = 64
    """For `noised`: how many pictures of the concept are made once, before training."""
    folder: str | None = None
    """For `noised`: a folder of pictures of the concept. When left out, the unedited model draws
    them."""
    wordings: Literal["name", "sentences"] = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {
            "steps": 100,
            "lr": 1e-4,
            "threshold": -1.0,
            "latents": "noised",
            "sampling_steps": 20,
            "batch": 8,
            "wordings": "sentences",
        },
    }
    bibtex: ClassVar[str] = """@article{zhao2024separable,
  title={Separable Multi-Concept Erasure from Diffusion Models},
  author={Zhao, Mengnan and Zhang, Lihe and Zheng, Tianhang and Kong, Yuqiu and Yin, Baocai},
  journal={arXiv preprint arXiv:2402.05947},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, sparsity=0, batch=1, pictures=1, sampling_steps=1)
        check_folder(self)

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in model.parameters("xattn").items()
        }
        student, momentum = model.student(deltas), Momentum(self.threshold)
        latents, empty = self._latents(model, concepts, context), model.empty()

        def ask(gs: list[torch.Generator]) -> Original:
            return original(model, empty, *latents.reach([latents.start(g) for g in gs], student))

        asked = Ahead(ask, steps=self.steps, stretch=latents.stretch, context=context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            cor = correlation(student, Original(*asked(step)), empty).mean()
            momentum.update(cor)
            return cor + self.sparsity * sparsity(deltas)

        optimise(
            loss,
            {**deltas, "momentum": momentum.value},
            Recipe(steps=self.steps, lr=self.lr),
            context=context,
            label="erasing",
            watch=momentum.stop,
        )
        return model.make_patch(deltas, {"method": "cie", "arguments": asdict(self)})

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {name: p.numel() for name, p in model.parameters("xattn").items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient, if nothing stops it."""
        asked = self.steps * self.batch
        guided = 2 * self.sampling_steps
        before = self.pictures * guided if self.latents == "noised" else asked * guided // 2
        return before + 2 * asked, 2 * asked

    def _latents(self, model: Diffusion, concepts: Sequence[Concept], context: Context) -> Latents:
        texts = [
            text
            for concept in concepts
            for text in (concept.sentences if self.wordings == "sentences" else (concept.name,))
        ]
        return Latents(
            model,
            model.embed(texts),
            self.latents,
            batch=self.batch,
            steps=self.sampling_steps,
            guidance=self.guidance,
            pictures=self.pictures,
            context=context,
            folder=Path(self.folder) if self.folder else None,
        )
