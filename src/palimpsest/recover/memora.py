"""MemoRa: pictures of what was erased by inversion, and a LoRA that learns them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind
from palimpsest.methods import Context, Recovery, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import Factors
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import TwoModels
from palimpsest.toolbox.interpolation import Interpolation, random_captions
from palimpsest.toolbox.latents import denoising_error
from palimpsest.toolbox.lora import added, factors_of, lora
from palimpsest.toolbox.optimise import Recipe, Trained, optimise
from palimpsest.toolbox.relearning_curve import Measured, Relearning

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MemoRa(Trained, Recovery):
    """Recover a concept from a few pictures, inverted and interpolated by the erased model.

    Polowczyk et al., "Memory Self-Regeneration: Uncovering Hidden Knowledge in Unlearned Models",
    2025, arXiv:2510.03263. (1) The original model draws pairs of pictures of the concept. The
    erased one (2) inverts them; (3) latents between the two of a pair are interpolated, and (4) it
    denoises them. (5) The results train a LoRA on it, by AdamW on half a cosine. `auto` makes it
    Auto-MemoRa, guidance between the model with the LoRA and the one without; `also` makes it
    Multi-MemoRa, several concepts' LoRAs at once.

    Traps: any model learns from pictures, so gold's curve must be measured, too. The curve is of
    the LoRA over the weights at scale 1, whatever `lora_scale` and `auto`. It is not 1 − UA: it
    asks with the concept's own sentences.
    """

    steps: int = 500
    lr: float = 1e-4
    rank: int = 4
    """Rank of the LoRA on the projections of every attention layer."""
    batch: int = 1
    """Pictures a micro-step."""
    accumulate: int = 4
    """Micro-steps a step. Computed as one batch of batch × accumulate: the mean is the same."""
    seed: int = 2024
    """Seed of the LoRA's training."""
    interpolation: Interpolation = Interpolation()
    """How the pictures are made."""
    pictures: Literal["interpolated", "plain"] = "interpolated"
    """What the LoRA learns from: the recipe above, or as many plain pictures of the concept made by
    the original model, with neither inversion nor interpolation (the control)."""
    captions: Literal["concept", "random"] = "concept"
    """What the pictures are called while the LoRA learns them: the concept's own sentence, or words
    drawn at random for each (a control)."""
    lora_scale: float = 1.0
    """Scale of the LoRA at generation."""
    auto: float | None = None
    """Auto-MemoRa's w in ε̂ = ε_bad + w·(ε_main − ε_bad): 1 is the main model, 0 the bad one. When
    left out, the LoRA is added to the weights and no two models are asked."""
    main: Literal["lora", "erased"] = "lora"
    """Auto-MemoRa's main model, the one with the LoRA or the erased one; the other is the bad."""
    also: tuple[str, ...] = ()
    """Multi-MemoRa: further concepts that get a LoRA each, added to the first; of the concept's
    kind, unless written as `style:van gogh`."""
    measure: Measured = Measured((0, 10, 50, 100, 200, 500), pictures=48)
    """When the relearning curve is measured, and on how many pictures."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unsafe": {"seed": 1337, "interpolation": Interpolation(steps=100)},
        "world": {
            "steps": 150,
            "lr": 1e-3,
            "interpolation": Interpolation(steps=20, guidance=3.0, start_step=6),
            "measure": Measured((0, 15, 30, 60, 150), pictures=36),
        },
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "adapters"})
    bibtex: ClassVar[str] = cite("polowczyk2025memory")
    least: ClassVar = dict(rank=1, batch=1, accumulate=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auto is not None and not math.isfinite(self.auto):
            raise PalimpsestError(f"MemoRa: auto is {self.auto}; it must be a finite number")

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Try to bring `concept` back to `model` as edited by `erased`.

        Raises:
            PalimpsestError: a second sampling hook, a further concept of no kind, no judge.
        """
        self._refuse_two_hooks(erased)
        curve = Relearning(model, concept, context, self.measure, self.batch * self.accumulate)
        recipe = Recipe(  # as in the authors' code
            self.steps, self.lr, "adamw", weight_decay=1e-2, schedule="cosine", clip=1.0
        )
        images, loras, traces = [], [], []
        for i, one in enumerate(self._concepts(concept)):
            own = replace(context, seed=context.seed + self.seed + i)
            images.append(self._pictures(model, one, erased))
            with model.patched(erased), lora(model, self.rank, own.stream("adapters")) as weights:
                trace = optimise(
                    self._loss(model, one, images[i], own),
                    weights,
                    recipe,
                    context=own,
                    label=f"LoRA {i + 1}" if i else "LoRA",
                    watch=None if i else curve.watch,  # of the concept that was asked for alone
                )
                loras.append(factors_of(model))
            traces.append(trace)
        return Result(
            self._patch(model, added(loras, self.lora_scale)),
            curve.points(traces[0]),
            images=torch.cat(images).cpu(),
            arm="plain" if self.pictures == "plain" else "published",
        )

    def _pictures(self, model: Diffusion, concept: Concept, erased: Patch | None) -> Tensor:
        """Make the pictures that the LoRA learns from."""
        if self.pictures == "plain":
            return self.interpolation.plain(model, concept)
        ends = model.encode(self.interpolation.ends(model, concept))  # step 1
        with model.patched(erased):
            return self.interpolation.interpolated(model, concept, ends)  # steps 2 to 4

    def _loss(
        self, model: Diffusion, concept: Concept, images: Tensor, context: Context
    ) -> Callable[[torch.Generator, int], Tensor]:
        """Return ‖ε(x_t, c) − noise‖² of the pictures and of their mirror images."""
        x_0 = torch.cat([model.encode(images), model.encode(images.flip(-1))])
        captions = list(concept.sentences[:1])  # one for all of them is enough
        if self.captions == "random":
            captions = random_captions(model, concept, len(images), context.stream("captions"))
        cond, n = model.embed(captions), self.batch * self.accumulate

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (n,), generator=g)
            return denoising_error(model, x_0[pick], cond[pick % len(cond)], g)  # step 5

        return loss

    def _patch(self, model: Diffusion, factors: Factors) -> Patch:
        """Make a patch of the LoRA: added to the weights, or beside them as one of two models."""
        if self.auto is None:
            edits = {name: (LowRank(*pair),) for name, pair in factors.items()}
            return model.checked(Patch(edits))
        up, down = ({name: pair[i] for name, pair in factors.items()} for i in (0, 1))
        hook = TwoModels(up, down, self.auto, self.main)  # ε̂ = ε_bad + w·(ε_main − ε_bad)
        return model.checked(Patch({}, hook=hook))

    def _refuse_two_hooks(self, erased: Patch | None) -> None:
        if self.auto is not None and erased is not None and erased.hook is not None:
            raise PalimpsestError(
                f"Auto-MemoRa is a sampling hook and so is the erasure ({erased.hook.kind}), and a "
                "model can have one; leave `auto` out"
            )

    def _concepts(self, concept: Concept) -> list[Concept]:
        """Return the concepts that get a LoRA."""
        found = [concept]
        for name in self.also:
            kind, _, rest = name.rpartition(":")
            if kind and kind not in get_args(Kind):
                raise PalimpsestError(
                    f"MemoRa: also names {name!r}, and {kind!r} is no kind of concept; the kinds "
                    f"are {', '.join(get_args(Kind))}"
                )
            found.append(Concept(rest, kind or concept.kind))  # type: ignore[arg-type]
        return found

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        return Demand(self.batch * self.accumulate, rank=self.rank, encoded=ENCODED)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, the curve aside."""
        loras, made = 1 + len(self.also), self.interpolation.evaluations(self.pictures == "plain")
        return loras * made, loras * self.steps * self.batch * self.accumulate

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries of the LoRAs, by the parameter that they shift."""
        ends = tuple(f".{target}.weight" for target in model.sites.lora_targets)
        weights = {n: p for n, p in model.parameters("full").items() if n.endswith(ends)}
        rank = self.rank * (1 + len(self.also))
        return {n: rank * (p.shape[0] + p.shape[1]) for n, p in weights.items()}
