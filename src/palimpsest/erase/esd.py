"""Erased Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.toolbox.latents import Ahead, Latents, LatentSource
from palimpsest.toolbox.optimise import Recipe, optimise


@dataclass(frozen=True)
class ESD:
    """Steer the concept's prediction to the far side of the empty prompt's.

    Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv:2303.07345. With ε*
    the frozen model and ε the trained one, eq. 7 asks of every noised latent x_t that
    ε(x_t, c) = ε*(x_t, ∅) − η·(ε*(x_t, c) − ε*(x_t, ∅)).
    """

    steps: int = 1000
    """Optimisation steps."""
    lr: float = 1e-5
    """Adam's learning rate."""
    eta: float = 1.0
    """Strength of the negative guidance, η."""
    train: ParameterGroup = "xattn"
    """Which parameters move: `xattn` (ESD-x), `noxattn` (ESD-u), `selfattn` or `full`."""
    latents: LatentSource = "student"
    """Where x_t comes from: sampled by the model under training (paper), by the frozen one (the
    authors' newer code), or pictures of the concept with noise added (cheaper, not published)."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that x_t is sampled on."""
    guidance: float = 3.0
    """Guidance that x_t, or the pictures for `noised`, are sampled with."""
    batch: int = 1
    """Latents a step."""
    pictures: int = 64
    """For `noised`: how many pictures of the concept are made once, before training."""
    wordings: Literal["name", "sentences"] = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "newer": {"steps": 200, "lr": 5e-5, "latents": "frozen"},
        "world": {
            "steps": 300,
            "lr": 2e-4,
            "latents": "noised",
            "sampling_steps": 20,
            "batch": 8,
            "wordings": "sentences",
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{gandikota2023erasing,
  title={Erasing Concepts from Diffusion Models},
  author={Gandikota, Rohit and Materzynska, Joanna and Fiotto-Kaufman, Jaden and Bau, David},
  booktitle={IEEE/CVF International Conference on Computer Vision},
  year={2023}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, batch=1, pictures=1, sampling_steps=1)

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts.

        Raises:
            PalimpsestError: no parameter selected, or the edit changes nothing.
        """
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in model.parameters(self.train).items()
        }
        student, empty = model.student(deltas), model.empty()
        texts = [text for concept in concepts for text in self._wordings(concept)]
        latents = self._latents(model, model.embed(texts), context)

        def aim(gs: list[torch.Generator]) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
            x_t, t, c = latents.reach([latents.start(g) for g in gs], student)
            both = empty.expand(len(x_t)) + c
            e_0, e_c = model.eps(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
            return x_t, t, c, e_0 - self.eta * (e_c - e_0)  # eq. 7

        aims = Ahead(aim, steps=self.steps, stretch=latents.stretch, context=context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_t, t, c, target = aims(step)
            return (student.eps(x_t, t, c) - target).square().mean()

        recipe = Recipe(steps=self.steps, lr=self.lr)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return model.make_patch(deltas, {"method": "esd", "arguments": asdict(self)})

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {name: p.numel() for name, p in model.parameters(self.train).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        guided = 2 * self.sampling_steps
        if self.latents == "noised":
            before = self.pictures * guided
        else:  # half the schedule on average
            before = self.steps * self.batch * guided // 2
        return before + 2 * self.steps * self.batch, self.steps * self.batch

    def _wordings(self, concept: Concept) -> tuple[str, ...]:
        return concept.sentences if self.wordings == "sentences" else (concept.name,)

    def _latents(self, model: Diffusion, cond: Conditioning, context: Context) -> Latents:
        return Latents(
            model,
            cond,
            self.latents,
            batch=self.batch,
            steps=self.sampling_steps,
            guidance=self.guidance,
            pictures=self.pictures,
            context=context,
        )
