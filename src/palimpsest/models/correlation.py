"""What CiE and SRS-ME share: the correlation loss, and the stop by its running mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from palimpsest.models.stable_diffusion import Conditioning, Diffusion
from palimpsest.optimise import Trace


def correlation(
    model: Diffusion,
    student: Diffusion,
    x_t: Tensor,
    t: Tensor,
    c: Conditioning,
    *,
    empty_is_held: bool,
) -> Tensor:
    """L_cor = mean(r_trained ⊙ r_original), signed, with r = ε(x_t, c) − ε(x_t, ∅) of each model.

    Args:
        model: the original.
        student: the model under training.
        x_t: (n, 4, h, w) noised latents.
        t: (n,) timesteps.
        c: n prompts.
        empty_is_held: the student answers ∅ exactly as the original does, which saves asking it.

    Returns:
        (n,) the loss of each latent.
    """
    empty = model.embed([""]).expand(len(x_t))
    twice = torch.cat([x_t, x_t]), t.repeat(2), empty + c
    with torch.no_grad():
        e_0, e_c = model.eps(*twice).chunk(2)
    if empty_is_held:
        trained_0, trained_c = e_0, student.eps(x_t, t, c)
    else:
        trained_0, trained_c = student.eps(*twice).chunk(2)
    return ((trained_c - trained_0) * (e_c - e_0)).mean((1, 2, 3))


def sparsity(deltas: Mapping[str, Tensor]) -> Tensor:
    """‖Δ‖₁ / M, M being the number of weight matrices that Δ shifts."""
    norms = [delta.abs().sum() for delta in deltas.values()]
    return torch.stack(norms).sum() / len(norms)


@dataclass(frozen=True)
class Momentum:
    """m ← 0.9·m + 0.1·L_cor, from m = 0; training stops once m is low enough.

    `value` goes to `optimise` among the parameters, though nothing trains it: so it stands in every
    checkpoint, and a resumed run stops where an unbroken one would.
    """

    threshold: float
    """τ: stop when m ≤ τ …"""
    after: int = 10
    """… but not before this many iterations."""
    value: Tensor = field(default_factory=lambda: torch.zeros(()))

    @torch.no_grad()
    def update(self, loss: Tensor) -> None:
        """Take in one iteration's Σ η·L_cor."""
        self.value.mul_(0.9).add_(0.1 * loss.detach().to(self.value))

    def stop(self, trace: Trace) -> bool:
        """Whether it is time to stop: the watcher of `optimise`."""
        return trace.step > self.after and float(self.value) <= self.threshold
