"""MemoRa: memory of what was erased, called up by inversion and made lasting by LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from palimpsest.concepts import Concept
from palimpsest.models.stable_diffusion import Diffusion
from palimpsest.optimise import Recipe, Trace, generator, optimise
from palimpsest.patch import LowRank, Patch
from palimpsest.recover.curve import Relearning
from palimpsest.types import Attempt, Context, PalimpsestError, at_least

PAIRS = ((1805, 2821), (1405, 2421), (1705, 2721))
"""The published pairs of seeds."""

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""What the LoRA adapts: every attention projection."""


@dataclass(frozen=True)
class MemoRa:
    """Recover a concept from a few pictures, inverted and interpolated by the erased model.

    Polowczyk et al., "Memory Self-Regeneration: Uncovering Hidden Knowledge in Unlearned Models",
    2025, arXiv:2510.03263. Pairs of pictures of the concept, made by the original model, are
    inverted by the erased one; the latents between the two of a pair are denoised by the erased
    model, and what comes out trains a LoRA on it.
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
    lora_scale: float = 1.0
    """Scale of the LoRA at generation."""
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

    def __call__(
        self, model: Diffusion, concept: Concept, erased: Patch | None, *, context: Context
    ) -> Attempt:
        """Try to bring `concept` back to `model` as edited by `erased`.

        Raises:
            PalimpsestError: a start step outside the schedule.
        """
        if not 0 <= self.start_step < self.sampling_steps - 1:
            raise PalimpsestError(
                f"start_step is {self.start_step}; it must be 0 to {self.sampling_steps - 2}"
            )
        if self.measure:
            context.needs_judge()  # before anything is spent
        images = self._plain(model, concept) if self.pictures == "plain" else None
        ends = None if images is not None else model.encode(self._ends(model, concept))
        with model.patched(erased):
            if ends is not None:
                images = model.decode(self._interpolated(model, concept, ends))
            assert images is not None
            with lora(model, self.rank, self.seed) as weights:
                trace = self._train(model, concept, images, weights, context)
                factors = factors_of(model)
        edits = {n: (LowRank(up * self.lora_scale, down),) for n, (up, down) in factors.items()}
        about = {"method": "memora", "arguments": asdict(self)}
        patch = model.checked(Patch(edits, about=about))
        curve = self._curve(model, concept, context).points(trace)
        return Attempt(patch, curve, concept.sentences[:1], images.cpu())

    @property
    def arm(self) -> str:
        """Which of the three arms this is, leaving the subject aside: `published` or `plain`."""
        return "plain" if self.pictures == "plain" else "published"

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (the curve aside) and with it."""
        guided, below = 2 * self.sampling_steps, 2 * (self.sampling_steps - self.start_step)
        ends, between = 2 * len(self.pairs), self.between * len(self.pairs)
        if self.pictures == "plain":
            before = between * guided
        else:  # draw and invert the ends, denoise what lies between
            before = ends * (guided + below) + between * below
        return before, self.steps * self.batch * self.accumulate

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries of the LoRA, by the parameter that it shifts."""
        ends = tuple(f".{target}.weight" for target in TARGETS)
        weights = {n: p for n, p in model.parameters("full").items() if n.endswith(ends)}
        return {n: self.rank * (p.shape[0] + p.shape[1]) for n, p in weights.items()}

    # --- pictures ---

    def _ends(self, model: Diffusion, concept: Concept) -> Tensor:
        """The pictures of all seeds, pair after pair."""
        return self._sampled(model, concept, [seed for pair in self.pairs for seed in pair])

    def _plain(self, model: Diffusion, concept: Concept) -> Tensor:
        """As many plain pictures as the recipe makes, the published seeds first."""
        seeds = [seed for pair in self.pairs for seed in pair]
        seeds += range(10_000, 10_000 + len(self.pairs) * self.between - len(seeds))
        return self._sampled(model, concept, seeds)

    def _sampled(self, model: Diffusion, concept: Concept, seeds: list[int]) -> Tensor:
        cond = model.embed(concept.sentences[:1])
        noise = torch.cat([model.noise(1, generator(seed)) for seed in seeds])
        parts = [
            model.sample(x, cond, steps=self.sampling_steps, guidance=self.guidance)
            for x in noise.split(model.sampling.batch)
        ]
        return model.decode(torch.cat(parts))

    def _interpolated(self, model: Diffusion, concept: Concept, ends: Tensor) -> Tensor:
        """Invert each pair's ends, walk the arc between them, denoise every latent on it."""
        cond = model.embed(concept.sentences[:1])
        steps, guidance = self.sampling_steps, self.guidance
        until = self.start_step + (1 if self.offset == "published" else 0)
        x_t = model.invert(ends, cond, steps=steps, guidance=guidance, until=until)
        arcs = [
            slerp(a, b, i / (self.between - 1))
            for a, b in zip(x_t[0::2], x_t[1::2], strict=True)
            for i in range(self.between)
        ]
        parts = [
            model.sample(x, cond, steps=steps, guidance=guidance, start=self.start_step)
            for x in torch.stack(arcs).split(model.sampling.batch)
        ]
        return torch.cat(parts)

    # --- LoRA ---

    def _curve(self, model: Diffusion, concept: Concept, context: Context) -> Relearning:
        per_step = self.batch * self.accumulate
        return Relearning(model, concept, context, self.measure, self.measure_pictures, per_step)

    def _train(
        self,
        model: Diffusion,
        concept: Concept,
        images: Tensor,
        weights: dict[str, Tensor],
        context: Context,
    ) -> Trace:
        x_0 = torch.cat([model.encode(images), model.encode(images.flip(-1))])
        cond, n = model.embed(concept.sentences[:1]), self.batch * self.accumulate

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (n,), generator=g)
            t = torch.randint(len(model.alphas), (n,), generator=g).to(x_0.device)
            noise = model.noise(n, g)
            x_t = model.add_noise(x_0[pick], noise, t)
            return (model.eps(x_t, t, cond) - noise).square().mean()

        recipe = Recipe(
            steps=self.steps,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="cosine",
            clip=1.0,
        )
        watch = self._curve(model, concept, context).watch if self.measure else None
        seeded = replace(context, seed=context.seed + self.seed)
        return optimise(loss, weights, recipe, context=seeded, label="LoRA", watch=watch)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from a to b, taken as flat vectors (Shoemake 1985)."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


@contextmanager
def lora(model: Diffusion, rank: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """PEFT's LoRA on every attention projection of the U-Net; taken off again in the end.

    Yields its trainable weights by name, in float32 whatever the model's precision: Adam's steps
    vanish in half precision. Up-projections start at zero, so nothing changes yet.
    """
    config = LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.unet.add_adapter(config)
    try:
        weights: dict[str, Tensor] = {
            name: p for name, p in model.unet.named_parameters() if p.requires_grad
        }
        for parameter in weights.values():
            parameter.data = parameter.data.float()
        yield weights
    finally:
        model.unet.unload_lora()
        model.unet.requires_grad_(False)


def factors_of(model: Diffusion) -> dict[str, tuple[Tensor, Tensor]]:
    """(up, down) of every adapted weight by canonical name, LoRA's own scaling folded in."""
    found = {}
    for name, module in model.unet.named_modules():
        if isinstance(module, LoraLayer):
            up = module.lora_B["default"].weight.detach() * module.scaling["default"]  # pyright: ignore[reportCallIssue]
            down = module.lora_A["default"].weight.detach()  # pyright: ignore[reportCallIssue]
            found[f"unet.{name}.weight"] = (up.float().cpu(), down.float().cpu().clone())
    return found
