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
    """For `noised`: how many pictures are made once, when first asked for."""
    context: Context
    """Its seed fixes the pictures."""

    def __call__(
        self, g: torch.Generator, student: Diffusion
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """(batch, 4, h, w) latents, their (batch,) timesteps and prompts."""
        if self.source == "noised":
            x_0 = self._x_0
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            t = torch.randint(len(self.model.alphas), (self.batch,), generator=g).to(x_0.device)
            x_t = self.model.add_noise(x_0[pick], self.model.noise(self.batch, g), t)
            return x_t, t, self._prompts(g)
        c, times = self._prompts(g), self.model.timesteps(self.steps)
        stop = int(torch.randint(len(times), (1,), generator=g))
        sampler = student if self.source == "student" else self.model
        x_t = sampler.sample(
            self.model.noise(self.batch, g),
            c,
            steps=self.steps,
            guidance=self.guidance,
            stop=stop,
        )
        # every timestep is met: t is drawn between this step's and the next lower one's
        gap = times[0] - times[1] if len(times) > 1 else 1
        t = torch.randint(
            max(0, times[stop] - gap + 1), times[stop] + 1, (self.batch,), generator=g
        )
        return x_t, t.to(x_t.device), c

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
