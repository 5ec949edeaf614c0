"""MemoRa: memory of what was erased, called up by inversion and made lasting by LoRA."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import Kind
from palimpsest.core.streams import generator
from palimpsest.methods import Attempt, Context
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import TwoModels
from palimpsest.toolbox.interpolation import Imagery, random_captions
from palimpsest.toolbox.interpolation import Join as Join
from palimpsest.toolbox.interpolation import slerp as slerp
from palimpsest.toolbox.lora import Factors, added, factors_of, lora
from palimpsest.toolbox.optimise import Recipe, Trace, optimise
from palimpsest.toolbox.relearning_curve import Relearning

PAIRS = ((1805, 2821), (1405, 2421), (1705, 2721))
"""The published pairs of seeds."""

CAPTIONS = 1
"""Which of the generators beside the training's own draws the random captions."""


@dataclass(frozen=True)
class MemoRa:
    """Recover a concept from a few pictures, inverted and interpolated by the erased model.

    Polowczyk et al., "Memory Self-Regeneration: Uncovering Hidden Knowledge in Unlearned Models",
    2025, arXiv:2510.03263. Pairs of pictures of the concept, made by the original model, are
    inverted by the erased one; the latents between the two of a pair are denoised by the erased
    model, and what comes out trains a LoRA on it. `auto` makes it Auto-MemoRa, guidance between the
    model with the LoRA and the one without; `also` makes it Multi-MemoRa, several concepts' LoRAs
    at once.
    """

    steps: int = 500
    """Optimisation steps of the LoRA."""
    lr: float = 1e-4
    """Peak learning rate, decayed along a half cosine."""
    rank: int = 4
    """Rank of the LoRA on to_q, to_k, to_v and to_out of every attention layer."""
    batch: int = 1
    """Pictures a micro-step."""
    accumulate: int = 4
    """Micro-steps a step. Computed as one batch of batch × accumulate: the mean is the same."""
    seed: int = 2024
    """Seed of the LoRA's training."""
    pairs: tuple[tuple[int, int], ...] = PAIRS
    """Seeds of the pictures whose latents are interpolated."""
    between: int = 11
    """Latents along each pair's arc, both ends included."""
    join: Join = "slerp"
    """How the latents of a pair are joined: by an arc, by a straight line (`linear`), or not at
    all (`none`: the inverted ends alone)."""
    count: int | None = None
    """How many of these pictures the LoRA learns from, chosen evenly; all of them when left out."""
    sampling_steps: int = 50
    """Length of the DDIM schedule for pictures and inversion."""
    guidance: float = 7.5
    """Guidance of pictures and inversion."""
    start_step: int = 15
    """The schedule's step that inversion reaches and denoising starts from."""
    offset: Literal["aligned", "published"] = "aligned"
    """`aligned` inverts to the level at which denoising starts; `published` stops one level below
    it (t = 661 against 681), as the authors' code does."""
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
    left out, the LoRA lies over the weights and no two models are asked."""
    main: Literal["lora", "erased"] = "lora"
    """Auto-MemoRa's main model, the one with the LoRA or the erased one; the other is the bad."""
    also: tuple[str, ...] = ()
    """Multi-MemoRa: further concepts that get a LoRA each, worn at once with the first; of the
    concept's kind, unless written as `style:van gogh`."""
    measure: tuple[int, ...] = (0, 10, 50, 100, 200, 500)
    """Steps at which the relearning curve is measured."""
    measure_pictures: int = 48
    """Pictures judged at each point of the curve."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {
            "steps": 150,
            "lr": 1e-3,
            "sampling_steps": 20,
            "guidance": 3.0,
            "start_step": 6,
            "measure": (0, 15, 30, 60, 150),
            "measure_pictures": 36,
        },
    }
    bibtex: ClassVar[str] = """@article{polowczyk2025memory,
  title={Memory Self-Regeneration: Uncovering Hidden Knowledge in Unlearned Models},
  author={Polowczyk, Agnieszka and Polowczyk, Alicja and Waczy{\\'n}ska, Joanna
          and Borycki, Piotr and Spurek, Przemys{\\l}aw},
  journal={arXiv preprint arXiv:2510.03263},
  year={2025}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, rank=1, batch=1, accumulate=1, between=2)
        at_least(self, sampling_steps=2, measure_pictures=1)
        if not self.pairs:
            raise PalimpsestError("MemoRa: pairs is empty; it needs at least one pair of seeds")
        whole = replace(self._imagery, count=None).whole
        if self.count is not None and not 1 <= self.count <= whole:
            raise PalimpsestError(f"MemoRa: count is {self.count}; it must be 1 to {whole}")
        if self.auto is not None and not math.isfinite(self.auto):
            raise PalimpsestError(f"MemoRa: auto is {self.auto}; it must be a finite number")

    def __call__(
        self, model: Diffusion, concept: Concept, erased: Patch | None, *, context: Context
    ) -> Attempt:
        """Try to bring `concept` back to `model` as edited by `erased`.

        Raises:
            PalimpsestError: a start step outside the schedule, a second sampling hook, a further
                concept of no kind.
        """
        self._check(erased)
        if self.measure:
            context.needs_judge()  # before anything is spent
        each = [
            self._recall(model, one, erased, replace(context, seed=context.seed + i), label)
            for i, (label, one) in enumerate(self._concepts(concept).items())
        ]
        images, curves, factors = zip(*each, strict=True)
        patch = self._patch(model, added(factors, self.lora_scale))
        return Attempt(patch, curves[0], images=torch.cat(images).cpu())

    def _recall(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context, label: str
    ) -> tuple[Tensor, tuple[CurvePoint, ...], Factors]:
        """One concept's pictures, relearning curve and LoRA."""
        imagery, plain = self._imagery, self.pictures == "plain"
        made = imagery.plain(model, concept) if plain else imagery.ends(model, concept)
        x_0 = None if plain else model.encode(made)
        with model.patched(erased):
            images = made if x_0 is None else imagery.called_up(model, concept, x_0)
            with lora(model, self.rank, self.seed) as weights:
                trace = self._train(model, concept, images, weights, context, label)
                factors = factors_of(model)
        return images, self._curve(model, concept, context).points(trace), factors

    def _patch(self, model: Diffusion, factors: Factors) -> Patch:
        """The LoRA over the weights, or beside them as one of two models."""
        about = {"method": "memora", "arguments": asdict(self)}
        if self.auto is None:
            edits = {name: (LowRank(*pair),) for name, pair in factors.items()}
            return model.checked(Patch(edits, about=about))
        up, down = ({name: pair[i] for name, pair in factors.items()} for i in (0, 1))
        hook = TwoModels(up, down, self.auto, self.main)
        return model.checked(Patch({}, about=about, hook=hook))

    def _check(self, erased: Patch | None) -> None:
        """Refuse what can only fail later."""
        if not 0 <= self.start_step < self.sampling_steps - 1:
            raise PalimpsestError(
                f"start_step is {self.start_step}; it must be 0 to {self.sampling_steps - 2}"
            )
        if self.auto is not None and erased is not None and erased.hook is not None:
            raise PalimpsestError(
                f"Auto-MemoRa is a sampling hook and so is the erasure ({erased.hook.kind}), and a "
                "model can wear one; leave `auto` out"
            )

    def _concepts(self, concept: Concept) -> dict[str, Concept]:
        """The concepts that get a LoRA, by the name of its training."""
        found = {"LoRA": concept}
        for i, name in enumerate(self.also, start=2):
            kind, _, rest = name.rpartition(":")
            if kind and kind not in get_args(Kind):
                raise PalimpsestError(
                    f"MemoRa: also names {name!r}, and {kind!r} is no kind of concept; the kinds "
                    f"are {', '.join(get_args(Kind))}"
                )
            found[f"LoRA {i}"] = Concept(rest, kind or concept.kind)  # type: ignore[arg-type]
        return found

    @property
    def arm(self) -> str:
        """Which of the three arms this is, leaving the subject aside: `published` or `plain`."""
        return "plain" if self.pictures == "plain" else "published"

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (the curve aside) and with it."""
        loras, before = 1 + len(self.also), self._imagery.evaluations(self.pictures == "plain")
        return loras * before, loras * self.steps * self.batch * self.accumulate

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries of the LoRAs, by the parameter that they shift."""
        ends = tuple(f".{target}.weight" for target in model.sites.lora_targets)
        weights = {n: p for n, p in model.parameters("full").items() if n.endswith(ends)}
        rank = self.rank * (1 + len(self.also))
        return {n: rank * (p.shape[0] + p.shape[1]) for n, p in weights.items()}

    @property
    def _imagery(self) -> Imagery:
        return Imagery(**{f.name: getattr(self, f.name) for f in fields(Imagery)})

    # --- LoRA ---

    def _curve(self, model: Diffusion, concept: Concept, context: Context) -> Relearning:
        per_step = self.batch * self.accumulate
        return Relearning(model, concept, context, self.measure, self.measure_pictures, per_step)

    def _captions(self, model: Diffusion, concept: Concept, n: int, seed: int) -> list[str]:
        """What each picture is called; one for all of them is enough."""
        if self.captions == "concept":
            return list(concept.sentences[:1])
        return random_captions(model, concept, n, generator(seed, CAPTIONS))

    def _train(
        self,
        model: Diffusion,
        concept: Concept,
        images: Tensor,
        weights: dict[str, Tensor],
        context: Context,
        label: str,
    ) -> Trace:
        x_0 = torch.cat([model.encode(images), model.encode(images.flip(-1))])
        seeded, n = replace(context, seed=context.seed + self.seed), self.batch * self.accumulate
        cond = model.embed(self._captions(model, concept, len(images), seeded.seed))

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (n,), generator=g)
            t = model.times(n, g)
            noise = model.noise(n, g)
            x_t = model.add_noise(x_0[pick], noise, t)
            named = cond[pick % len(cond)]
            return (model.eps(x_t, t, named) - noise).square().mean()

        recipe = Recipe(
            steps=self.steps,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="cosine",
            clip=1.0,
        )
        first = label == "LoRA"  # the curve is that of the concept that was asked for
        watch = self._curve(model, concept, context).watch if self.measure and first else None
        return optimise(loss, weights, recipe, context=seeded, label=label, watch=watch)
