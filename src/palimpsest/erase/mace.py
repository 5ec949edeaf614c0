"""Mass concept erasure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.streams import generator
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.attention import attention_maps, within, word_positions
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import PictureLatents, draw, read_latents

Factors = dict[str, tuple[Tensor, Tensor]]
"""(out, rank) up and (rank, in) down of a LoRA by the weight that it shifts."""


@dataclass(frozen=True)
class MACE(Eraser):
    """Clear the words around a concept, turn attention off it by LoRA, and fuse the LoRAs.

    Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv:2403.06135. For
    every key and value matrix W of the cross-attention, in three steps:

    1. Refinement, in closed form. e_f is the embedding of a word that stands beside the concept in
       a sentence, e_g that of the same word with the anchor in the concept's place, e_p what is
       kept: W' = argmin Σ‖W'e_f − We_g‖² + λ₁Σ‖W'e_p − We_p‖².
    2. A LoRA ΔW_i on W' for each concept i, trained to minimise Σ‖A ⊙ M‖²_F over the layers'
       attention maps A of the concept's own words, within the mask M of its region.
    3. Fusion, in closed form, over the embeddings e_i of each concept's words:
       W* = argmin Σ_iΣ‖W*e_i − (W' + ΔW_i)e_i‖² + λ₂Σ‖W*e_p − We_p‖².
    """

    refine_preserve: float = 0.0
    """λ₁: weight of what is kept in the refinement. The authors keep nothing when they erase an
    object, and hold the weights instead."""
    fuse_preserve: float = 0.0
    """λ₂: weight of what is kept in the fusion."""
    hold: float = 1000.0
    """Weight of ‖W' − W‖² and ‖W* − W‖² in the two closed forms (in the authors' configuration, not
    in the paper). At 0 what no embedding reaches stays all the same: of all solutions the one
    nearest to W is taken."""
    rank: int = 1
    """Rank of each concept's LoRA."""
    steps: int = 50
    """Optimisation steps of each LoRA."""
    lr: float = 1e-5
    """AdamW's learning rate."""
    batch: int = 1
    """Pictures a step."""
    focus: tuple[int, int] = (200, 400)
    """t₁ and t₂ between which timesteps are mostly drawn: the density of t is proportional to
    σ(γ(t − t₁)) − σ(γ(t − t₂))."""
    sharpness: float = 0.05
    """γ: how sharply that density falls off."""
    pictures: int = 8
    """Pictures of each concept, made once by the unedited model."""
    sampling_steps: int = 50
    """Steps of DDIM for those pictures."""
    guidance: float = 7.5
    """Guidance of those pictures."""
    folder: str | None = None
    """A folder of pictures of the concept, instead of made ones; for several concepts, one that
    holds such a folder under each one's name."""
    masks: str | None = None
    """A folder of masks, white where the concept is, named as the pictures in `folder` are. Left
    out, the whole picture counts."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "celebrity": {"refine_preserve": 1e-4, "fuse_preserve": 1e-4, "hold": 0.0, "lr": 1e-4},
        "style": {"refine_preserve": 1e-4, "fuse_preserve": 1e-4, "hold": 0.0, "lr": 1e-4},
        "unsafe": {
            "refine_preserve": 7e-7,
            "fuse_preserve": 7e-7,
            "hold": 0.0,
            "steps": 120,
            "focus": (-1, 1000),  # every timestep alike
            "sharpness": 100.0,
        },
        "world": {
            "refine_preserve": 0.1,
            "fuse_preserve": 0.1,
            "hold": 1.0,
            "steps": 60,
            "lr": 1e-3,
            "batch": 8,
            "pictures": 16,
            "sampling_steps": 20,
            "guidance": 3.0,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{lu2024mace,
  title={{MACE}: Mass Concept Erasure in Diffusion Models},
  author={Lu, Shilin and Wang, Zilan and Li, Leyang and Liu, Yanzhu and Kong, Adams Wai-Kin},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, refine_preserve=0, fuse_preserve=0, hold=0, rank=1, steps=1, lr=0, batch=1)
        at_least(self, pictures=1, sampling_steps=1, sharpness=1e-6)
        if not self.focus[0] < self.focus[1]:
            raise PalimpsestError(f"MACE: focus is {self.focus}; its first must be the smaller")
        if self.masks is not None and self.folder is None:
            raise PalimpsestError("MACE: masks are given, but no folder of the pictures they mask")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts: beside them their anchor is meant, or nothing if they have none.

        Raises:
            PalimpsestError: pictures or masks are missing, or the edit changes nothing.
        """
        concepts = task.concepts
        weights = {n: p for n, p in model.parameters("xattn-kv").items() if p.ndim == 2}
        shown = [self._shown(model, c, k, len(concepts), context) for k, c in enumerate(concepts)]
        move = self.refinement(model, concepts)
        refined = {n: W.cpu().double() @ move for n, W in weights.items()}  # W' − W
        loras = []
        for k, concept in enumerate(concepts):
            loss, factors = self._attention(model, concept, refined, shown[k], k, context)
            label = f"LoRA of {concept.name}"
            flat = {f"{n}|{i}": t for n, pair in factors.items() for i, t in enumerate(pair)}
            recipe = Recipe(steps=self.steps, lr=self.lr, optimizer="adamw", weight_decay=1e-2)
            optimise(loss, flat, recipe, context=context, label=label)
            loras.append({n: (u.detach() @ d.detach()).cpu() for n, (u, d) in factors.items()})
        deltas = self.fusion(model, concepts, refined, loras)
        return Result(model.make_patch(deltas))

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {n: p.numel() for n, p in model.parameters("xattn-kv").items() if p.ndim == 2}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent for one concept, without and with gradient."""
        made = 0 if self.folder else self.pictures
        return made * 2 * self.sampling_steps, self.steps * self.batch

    # --- the two closed forms, small and in float64 on the CPU ---

    @torch.no_grad()
    def refinement(self, model: Diffusion, concepts: Sequence[Concept]) -> Tensor:
        """Step 1 for all concepts at once: the (width, width) move with W' = W + W·move."""
        beside = [_beside(model, *wording) for c in concepts for wording in c.wordings]
        e_f = torch.cat([ours for ours, _ in beside])
        e_g = torch.cat([theirs for _, theirs in beside])
        e_p = self._kept(model, concepts)
        # W' − W = W·Σ(e_g − e_f)e_fᵀ·(Σe_f e_fᵀ + λ₁Σe_p e_pᵀ)⁻¹: the numerator less W·Gram
        gram = e_f.T @ e_f + self.refine_preserve * e_p.T @ e_p
        return (e_g - e_f).T @ e_f @ self._inverse(gram)

    @torch.no_grad()
    def fusion(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        refined: dict[str, Tensor],
        loras: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Step 3: W* − W by weight, from W' − W and each concept's ΔW."""
        e_p = self._kept(model, concepts)
        own = [self._own(model, concept) for concept in concepts]
        inverse = self._inverse(
            sum((e.T @ e for e in own), self.fuse_preserve * e_p.T @ e_p)  # Σe_i e_iᵀ + λ₂Σe_p e_pᵀ
        )
        return {
            n: sum(
                ((shift + lora[n].double()) @ e.T @ e for lora, e in zip(loras, own, strict=True)),
                torch.zeros_like(shift),
            )
            @ inverse
            for n, shift in refined.items()
        }

    def _inverse(self, gram: Tensor) -> Tensor:
        """Of the Gram matrix, held; the pseudo-inverse leaves alone what no embedding reaches."""
        held = gram + self.hold * torch.eye(len(gram)).to(gram)
        return torch.linalg.pinv(held, hermitian=True, rtol=1e-10)

    def _kept(self, model: Diffusion, concepts: Sequence[Concept]) -> Tensor:
        """(rows, width) e_p: every token of what the concepts keep, and of the empty prompt."""
        texts = [text for concept in concepts for text in concept.keep]
        return model.rows([*texts, ""]).flatten(0, 1).cpu().double()

    def _own(self, model: Diffusion, concept: Concept) -> Tensor:
        """(rows, width) e_i: from the concept's first token on, all that can know of it."""
        rows = []
        for sentence, name, _, _ in concept.wordings:
            rows.append(model.rows([sentence])[0, model.text.span(sentence, name)[0] :])
        return torch.cat(rows).cpu().double()

    # --- step 2 ---

    def _shown(
        self, model: Diffusion, concept: Concept, k: int, of: int, context: Context
    ) -> PictureLatents:
        """The concept's pictures, with their masks if there are any."""
        if self.folder is None:
            x_0, _ = draw(
                model,
                model.embed(concept.sentences),
                self.pictures,
                generator(context.seed, 1, k),
                steps=self.sampling_steps,
                guidance=self.guidance,
                context=context,
                label=f"pictures of {concept.name}",
            )
            return PictureLatents(x_0)
        below = concept.name if of > 1 else ""
        masks = Path(self.masks) / below if self.masks else None
        return read_latents(model, Path(self.folder) / below, masks, mirror=False)

    def _attention(
        self,
        model: Diffusion,
        concept: Concept,
        refined: dict[str, Tensor],
        shown: PictureLatents,
        k: int,
        context: Context,
    ) -> tuple[Callable[[torch.Generator, int], Tensor], Factors]:
        """The loss of step 2 and the LoRA's factors that it depends on."""
        cond, x_0 = model.embed(concept.sentences), shown.x_0
        spans = [word_positions(model, text, name) for text, name, *_ in concept.wordings]
        words = torch.stack(spans)
        base = model.parameters("xattn-kv")
        W = {n: base[n].detach().float() + d.float().to(base[n].device) for n, d in refined.items()}
        factors = self._factors(W, generator(context.seed, 2, k))
        student = model.overlaid(lambda: {n: W[n] + u @ d for n, (u, d) in factors.items()})
        density = focal(model.schedule.levels, *self.focus, self.sharpness)

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            asks = torch.randint(len(words), (self.batch,), generator=g)
            t = torch.multinomial(density, self.batch, replacement=True, generator=g).to(x_0.device)
            x_t = model.add_noise(x_0[pick], model.noise(self.batch, g), t)
            maps = attention_maps(student, x_t, t, cond[asks], words[asks])
            return masked(maps.values(), None if shown.masks is None else shown.masks[pick])

        return loss, factors

    def _factors(self, weights: dict[str, Tensor], g: torch.Generator) -> Factors:
        """A LoRA that shifts nothing yet: up is zero."""
        found = {}
        for name, W in weights.items():
            down = (2 * torch.rand(self.rank, W.shape[1], generator=g) - 1) / W.shape[1] ** 0.5
            up = torch.zeros(len(W), self.rank).to(W.device)
            found[name] = (up.requires_grad_(), down.to(W.device).requires_grad_())
        return found


def masked(maps: Iterable[Tensor], masks: Tensor | None) -> Tensor:
    """Σ_layers ‖A ⊙ M‖²_F over pixels and the concept's words, mean over pictures and heads.

    Args:
        maps: (n, heads, pixels, words) a layer.
        masks: (n, 1, h, w), 1 where the concept is, averaged down to each layer's pixels; None
            counts every pixel.
    """
    parts = within(maps, masks)
    return torch.stack([A.square().sum((2, 3)).mean() for A in parts]).sum()


def focal(steps: int, low: float, high: float, sharpness: float) -> Tensor:
    """(steps,) density of t, ∝ σ(γ(t − t₁)) − σ(γ(t − t₂)): where the concept takes shape."""
    t = torch.arange(steps, dtype=torch.float64)
    density = torch.sigmoid(sharpness * (t - low)) - torch.sigmoid(sharpness * (t - high))
    return density / density.sum()


def _beside(
    model: Diffusion, sentence: str, name: str, other: str, anchor: str
) -> tuple[Tensor, Tensor]:
    """(tokens, width) e_f and e_g: what follows the concept, and the same after its anchor.

    The text encoder is causal: what stands before the concept does not know of it.
    """
    ours, theirs = model.rows([sentence, other]).cpu().double()
    i = model.text.span(sentence, name)[-1] + 1
    j = model.text.span(other, anchor)[-1] + 1 if anchor else 1  # the empty prompt's end
    n = model.text.window - max(i, j)
    return ours[i : i + n], theirs[j : j + n]
