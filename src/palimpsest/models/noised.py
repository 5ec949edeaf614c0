"""Noised latents x_t to train on: sampled half the way, or pictures with noise added."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.models.stable_diffusion import Conditioning, Diffusion


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
