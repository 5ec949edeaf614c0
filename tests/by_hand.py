"""The inputs of a first training step, from the draws as documented, for losses by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.core.streams import stream
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning


def on_the_way(
    model: Diffusion, cond: Conditioning, g: torch.Generator, steps: int
) -> tuple[Tensor, Tensor]:
    """(x_t, t): sampled up to a step of the grid, and a time of the interval that ends there."""
    torch.randint(1, (1,), generator=g)
    stop = int(torch.randint(steps, (1,), generator=g))
    x_t = model.sample(model.noise(1, g), cond, steps=steps, guidance=3.0, stop=stop)
    high = model.schedule.grid(steps)[:-1][stop]
    low = max(0, high - 1000 // steps + 1)
    return x_t, torch.randint(low, high + 1, (1,), generator=g)


def noised(
    model: Diffusion, cond: Conditioning, g: torch.Generator, steps: int, owners: bool = False
) -> tuple[Tensor, Tensor]:
    """(x_t, t) of the one picture that seed 3 draws; `owners`: its concept is drawn before it."""
    x_0 = model.sample(model.noise(1, stream(3, "pictures")), cond, steps=steps, guidance=3.0)
    for _ in range(1 + owners):
        torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    return model.add_noise(x_0, model.noise(1, g), t), t
