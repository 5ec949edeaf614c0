"""Noised latents to train at: sampled up to a random step, or pictures with noise added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from palimpsest.models.pictures import draw
from palimpsest.models.stable_diffusion import Conditioning, Diffusion
from palimpsest.optimise import generator
from palimpsest.types import Context

LatentSource = Literal["student", "frozen", "noised"]
"""Sampled by the model under training, by the frozen one, or pictures with noise added."""


def sampled_midway(
    sampler: Diffusion, cond: Conditioning, g: torch.Generator, steps: int, guidance: float
) -> tuple[Tensor, Tensor]:
    """Sample from noise to a random step of the DDIM schedule.

    Args:
        sampler: the model, or the view of it, that samples.
        cond: one prompt a latent.
        g: draws the step, the noise and t.
        steps: length of the whole schedule.
        guidance: classifier-free guidance.

    Returns:
        (n, 4, h, w) latents, and (n,) timesteps drawn between that step's and the next lower one's.
    """
    times = sampler.timesteps(steps)
    gap = times[0] - times[1] if len(times) > 1 else 1
    stop = int(torch.randint(len(times), (1,), generator=g))
    noise = sampler.noise(len(cond), g)
    x_t = sampler.sample(noise, cond, steps=steps, guidance=guidance, stop=stop)
    low = max(0, times[stop] - gap + 1)
    t = torch.randint(low, times[stop] + 1, (len(cond),), generator=g)
    return x_t, t.to(x_t.device)


def noised(model: Diffusion, x_0: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise to clean latents, each to a timestep drawn uniformly.

    Returns:
        (n, 4, h, w) latents, and (n,) their timesteps.
    """
    t = torch.randint(len(model.alphas), (len(x_0),), generator=g).to(x_0.device)
    return model.add_noise(x_0, model.noise(len(x_0), g), t), t


@dataclass(frozen=True)
class Latents:
    """What draws (x_t, t, c) for one step."""

    model: Diffusion
    """The frozen model."""
    cond: Conditioning
    """The concept's prompts; each latent takes one of them at random."""
    source: LatentSource
    """Where x_t comes from."""
    batch: int
    """Latents a step."""
    steps: int
    """Length of the DDIM schedule."""
    guidance: float
    """Guidance that x_t, or the pictures, are sampled with."""
    pictures: int
    """For `noised`: how many pictures are made, before anything is trained."""
    context: Context
    """Its seed fixes the pictures."""

    def __post_init__(self) -> None:
        if self.source == "noised":
            _ = self._x_0

    def __call__(
        self, g: torch.Generator, student: Diffusion
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """(batch, 4, h, w) latents, their (batch,) timesteps and prompts."""
        if self.source == "noised":
            pick = torch.randint(len(self._x_0), (self.batch,), generator=g)
            x_t, t = noised(self.model, self._x_0[pick], g)
            return x_t, t, self._prompts(g)
        c, sampler = self._prompts(g), student if self.source == "student" else self.model
        x_t, t = sampled_midway(sampler, c, g, self.steps, self.guidance)
        return x_t, t, c

    def _prompts(self, g: torch.Generator) -> Conditioning:
        return self.cond[torch.randint(len(self.cond), (self.batch,), generator=g)]

    @cached_property
    def _x_0(self) -> Tensor:
        x_0, _ = draw(
            self.model,
            self.cond,
            self.pictures,
            generator(self.context.seed, 1),
            steps=self.steps,
            guidance=self.guidance,
            context=self.context,
            label="pictures of the concept",
        )
        return x_0
