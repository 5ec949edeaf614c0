"""Mass concept erasure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import Factors, parameters, untrained
from palimpsest.toolbox.attention import attention_maps, end_of_text, within, word_positions
from palimpsest.toolbox.attention_steering import Pictured
from palimpsest.toolbox.optimise import Loss, Recipe, optimise
from palimpsest.toolbox.pictures import Drawn, PictureLatents

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MACE(Pictured, Eraser):
    """Clear the words around a concept, turn attention off it by LoRA, and fuse the LoRAs.

    Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv:2403.06135. For
    every key and value matrix W of the cross-attention, in three steps:

    1. Refinement, in closed form (§3.1, eq. 1 and 2). e_f is the embedding of a word that stands
       beside the concept in a sentence, e_g that of the same word with the anchor in the concept's
       place, e_p what is kept: W' = argmin Σ‖W'e_f − We_g‖² + λ₁Σ‖W'e_p − We_p‖².
    2. A LoRA W' + BD for each concept (§3.2, eq. 3 to 5), trained to minimise Σ‖A ⊙ M‖_F over the
       layers' attention maps A of the concept's own words, within the mask M of its region.
    3. Fusion, in closed form (§3.3, eq. 7), over the embeddings e_i of each concept's sentences:
       W* = argmin Σ_iΣ‖W*e_i − (W' + ΔW_i)e_i‖² + λ₂Σ‖W*e_p − We_p‖².

    Traps: at `hold` 0 nothing but what is kept bounds the closed forms, and small directions move W
    far. Without masks an object's words lose attention everywhere. A LoRA trained too hard leaves
    broken patterns, which count as erased, too. The `keep` list of each of several concepts should
    name the others.
    """

    steps: int = 50
    lr: float = 1e-5
    drawn: Drawn = Drawn(8, steps=30, guidance=7.5)
    refine_preserve: float = 0.0
    """λ₁: weight of what is kept in the refinement. The authors keep nothing when they erase an
    object, and hold the weights instead."""
    fuse_preserve: float = 0.0
    """λ₂: weight of what is kept in the fusion."""
    hold: float = 1000.0
    """Weight of ‖W' − W‖² and ‖W* − W'‖² in the two closed forms (in the authors' configuration,
    not in the paper). At 0 what no embedding reaches stays all the same: of all solutions the one
    nearest to W, or to W', is taken."""
    fuse_tokens: Literal["all", "own"] = "all"
    """e_i: every token of the concept's sentences (the authors' code), or those from the concept's
    first one on, which alone depend on it."""
    rank: int = 1
    """Rank of each concept's LoRA."""
    init: Literal["normal", "uniform"] = "normal"
    """What D is drawn from: N(0, 1/rank²) (the authors' code), or uniformly in ±1/√in."""
    objective: Literal["norm", "squares"] = "norm"
    """A layer's part of the loss: the norm over its heads (the authors' code), or the square of it,
    as a mean over them (eq. 3)."""
    pooler: bool = True
    """Turn the attention off every `<|endoftext|>` too, the padding of Stable Diffusion 1.x
    included (the authors' code)."""
    focus: tuple[int, int] = (200, 400)
    """t₁ and t₂ between which timesteps are mostly drawn: the density of t is proportional to
    σ(γ(t − t₁)) − σ(γ(t − t₂))."""
    sharpness: float = 0.05
    """γ: how sharply that density falls off."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"diffusion", "attention maps of the text", "text inputs"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "celebrity": {"refine_preserve": 1e-8, "fuse_preserve": 1e-4, "hold": 0.0, "lr": 1e-4},
        "style": {"refine_preserve": 1e-8, "fuse_preserve": 1e-4, "hold": 0.0, "lr": 1e-4},
        "unsafe": {
            "refine_preserve": 4.9e-13,  # their code's λ₁ counts twice: 7e-7 squared
            "fuse_preserve": 7e-7,
            "hold": 0.0,
            "steps": 120,
            "focus": (-1, 1000),  # every timestep alike
            "sharpness": 100.0,
        },
        "world": {
            "refine_preserve": 0.1,
            "fuse_preserve": 0.1,
            "fuse_tokens": "own",
            "hold": 1.0,
            "steps": 60,
            "lr": 1e-3,
            "init": "uniform",
            "objective": "squares",
            "pooler": False,
            "batch": 8,
            "clip": None,
            "drawn": Drawn(16, steps=20, guidance=3.0),
        },
    }
    bibtex: ClassVar[str] = cite("lu2024mace")
    least: ClassVar = dict(refine_preserve=0, fuse_preserve=0, hold=0, rank=1, sharpness=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.focus[0] < self.focus[1]:
            raise PalimpsestError(f"MACE: focus is {self.focus}; its first must be the smaller")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts: beside them their anchor is meant, or nothing if they have none.

        Raises:
            PalimpsestError: pictures or masks that cannot be used, or an edit that changes nothing.
        """
        concepts, W = task.concepts, model.matrices("xattn-kv")
        pictures = self.pictures(model, concepts, context)
        move = self.refinement(model, concepts)
        refined = {n: w.cpu().double() @ move for n, w in W.items()}  # step 1: W' − W
        W_1 = {n: w.detach().float() + refined[n].float().to(w.device) for n, w in W.items()}
        recipe = Recipe(self.steps, self.lr, "adamw", weight_decay=1e-2, clip=self.clip)
        loras = []
        for k, (concept, shown) in enumerate(zip(concepts, pictures, strict=True)):  # step 2
            factors = untrained(W_1, self.rank, context.stream("adapters", k), self.init)
            loss = self._attention(model, concept, W_1, factors, shown)
            label = f"LoRA of {concept.name}"
            optimise(loss, parameters(factors), recipe, context=context, label=label)
            loras.append({n: (B.detach() @ D.detach()).cpu() for n, (B, D) in factors.items()})
        return Result(model.make_patch(self.fusion(model, concepts, refined, loras)))  # step 3

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries that move, by parameter."""
        return {name: W.numel() for name, W in model.matrices("xattn-kv").items()}

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent for one concept."""
        return self.drawn.cost, self.steps * self.batch

    # --- steps 1 and 3, small and in float64 on the CPU ---

    @no_grad
    def refinement(self, model: Diffusion, concepts: Sequence[Concept]) -> Tensor:
        """Solve step 1 for all concepts at once: the (width, width) move with W' = W + W·move."""
        beside = [_beside(model, *wording) for c in concepts for wording in c.wordings]
        e_f, e_g = (torch.cat(side) for side in zip(*beside, strict=True))
        e_p = self._kept(model, concepts)
        gram = e_f.T @ e_f + self.refine_preserve * e_p.T @ e_p
        return (e_g - e_f).T @ e_f @ self._inverse(gram)  # eq. 2 less W: its numerator less W·gram

    @no_grad
    def fusion(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        refined: dict[str, Tensor],
        loras: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Solve step 3: W* − W by weight, from W' − W and each concept's ΔW."""
        e_p = self._kept(model, concepts)
        own = [self._own(model, concept) for concept in concepts]
        gram_p, grams = self.fuse_preserve * e_p.T @ e_p, [e.T @ e for e in own]
        inverse = self._inverse(sum(grams, gram_p))

        def solved(name: str, shift: Tensor) -> Tensor:
            moves = (lora[name].double() @ gram for lora, gram in zip(loras, grams, strict=True))
            # the solution of eq. 7 less W, found as a move from W'
            return shift + sum(moves, -shift @ gram_p) @ inverse

        return {name: solved(name, shift) for name, shift in refined.items()}

    def _inverse(self, gram: Tensor) -> Tensor:
        """Invert the Gram matrix with `hold`; a pseudo-inverse moves nothing along its kernel."""
        held = gram + self.hold * torch.eye(len(gram)).to(gram)
        return torch.linalg.pinv(held, hermitian=True, rtol=1e-10)

    def _kept(self, model: Diffusion, concepts: Sequence[Concept]) -> Tensor:
        """Return (rows, width) e_p: every token of what is kept, and of the empty prompt."""
        texts = [text for concept in concepts for text in concept.keep]
        return model.rows([*texts, ""]).flatten(0, 1).cpu().double()

    def _own(self, model: Diffusion, concept: Concept) -> Tensor:
        """Return (rows, width) e_i: all tokens, or those that depend on the concept."""
        if self.fuse_tokens == "all":
            return model.rows(concept.sentences).flatten(0, 1).cpu().double()
        firsts = [(w.sentence, model.text.span(w.sentence, w.words)[0]) for w in concept.wordings]
        rows = [model.rows([sentence])[0, first:] for sentence, first in firsts]
        return torch.cat(rows).cpu().double()

    # --- step 2 ---

    def _attention(
        self,
        model: Diffusion,
        concept: Concept,
        W_1: dict[str, Tensor],
        factors: Factors,
        shown: PictureLatents,
    ) -> Loss:
        """Return the loss of a concept's LoRA on W'."""
        cond, x_0 = model.embed(concept.sentences), shown.x_0
        words = torch.stack([word_positions(model, w.sentence, w.words) for w in concept.wordings])
        if self.pooler:
            words = words | end_of_text(model, model.text.ids(concept.sentences))
        density = focal(model.schedule.levels, *self.focus, self.sharpness)

        def overlay() -> dict[str, Tensor]:
            return {name: W_1[name] + B @ D for name, (B, D) in factors.items()}  # eq. 4

        student = model.overlaid(overlay)

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            asks = torch.randint(len(words), (self.batch,), generator=g)
            t = torch.multinomial(density, self.batch, replacement=True, generator=g).to(x_0.device)
            x_t = model.add_noise(x_0[pick], model.noise(self.batch, g), t)
            maps = attention_maps(student, x_t, t, cond[asks], words[asks])
            masks = None if shown.masks is None else shown.masks[pick]
            return masked(maps.values(), masks, self.objective)

        return loss


def masked(maps: Iterable[Tensor], masks: Tensor | None, objective: str) -> Tensor:
    """Compute Σ_layers ‖A ⊙ M‖_F over pixels, words and heads, mean over pictures.

    Args:
        maps: (n, heads, pixels, words) a layer.
        masks: (n, 1, h, w), 1 where the concept is, averaged down to each layer's pixels; None
            counts every pixel.
        objective: `norm`, or `squares`: Σ_layers ‖A ⊙ M‖²_F, mean over pictures and heads.
    """
    squares = [A.square().sum((2, 3)) for A in within(maps, masks)]
    if objective == "norm":  # eq. 3 without the square; √ is too steep at 0
        return torch.stack([s.sum(1).clamp_min(1e-12).sqrt().mean() for s in squares]).sum()
    return torch.stack([s.mean() for s in squares]).sum()  # eq. 3


def focal(steps: int, low: float, high: float, sharpness: float) -> Tensor:
    """Compute the (steps,) density of t, high where the concept takes shape."""
    t = torch.arange(steps, dtype=torch.float64)
    density = torch.sigmoid(sharpness * (t - low)) - torch.sigmoid(sharpness * (t - high))
    return density / density.sum()  # eq. 5


def _beside(
    model: Diffusion, sentence: str, name: str, other: str, anchor: str
) -> tuple[Tensor, Tensor]:
    """Return (rows, width) e_f and e_g: before the concept itself twice, after it its anchor's.

    The text encoder is causal: what stands before the concept does not know of it and is held.
    """
    ours, theirs = model.rows([sentence, other]).cpu().double()
    span = model.text.span(sentence, name)
    before, i = ours[: span[0]], span[-1] + 1
    j = model.text.span(other, anchor)[-1] + 1 if anchor else 1  # the empty prompt's end
    n = model.text.window - max(i, j)
    return torch.cat([before, ours[i : i + n]]), torch.cat([before, theirs[j : j + n]])
