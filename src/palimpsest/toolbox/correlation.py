"""What CiE and SRS-ME share: the correlation loss, and the stop by its running mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from palimpsest.core.lazily import no_grad
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.latents import both
from palimpsest.toolbox.optimise import Loss, Recipe, Trace, optimise

if TYPE_CHECKING:
    from torch import Tensor


class Original(NamedTuple):
    """Noised latents, and what the original model predicts of them."""

    x_t: Tensor
    """(n, channels, h, w) noised latents."""
    t: Tensor
    """(n,) times."""
    c: Conditioning
    """n prompts."""
    e_0: Tensor
    """ε(x_t, ∅)."""
    e_c: Tensor
    """ε(x_t, c)."""


@no_grad
def original(
    model: Diffusion, empty: Conditioning, x_t: Tensor, t: Tensor, c: Conditioning
) -> Original:
    """Ask the original model for both predictions, in one batch."""
    return Original(x_t, t, c, *both(model, empty, x_t, t, c))


def correlation(student: Diffusion, said: Original, empty: Conditioning | None) -> Tensor:
    """Return L_cor = mean(r_trained ⊙ r_original) of each latent, (n,), signed.

    r = ε(x_t, c) − ε(x_t, ∅) of each model (Zhao et al. 2024, arXiv:2402.05947, eq. 5).

    Args:
        student: the model under training.
        said: the latents, and the original model's predictions.
        empty: the embedded ∅; None if the student answers it exactly as the original does, which
            saves asking it.
    """
    x_t, t, c, e_0, e_c = said
    if empty is None:
        trained_0, trained_c = e_0, student.eps(x_t, t, c)
    else:
        trained_0, trained_c = both(student, empty, x_t, t, c)
    return ((trained_c - trained_0) * (e_c - e_0)).mean((1, 2, 3))  # eq. 5


def sparsity(deltas: Mapping[str, Tensor]) -> Tensor:
    """Return ‖Δ‖₁ / M, M being the number of weight matrices that Δ shifts."""
    norms = [delta.abs().sum() for delta in deltas.values()]
    return torch.stack(norms).sum() / len(norms)


@dataclass(frozen=True)
class Momentum:
    """The running mean of L_cor; training stops once it is low enough.

    `value` goes to `optimise` among the parameters, though nothing trains it: so every checkpoint
    holds it, and a resumed run stops where an unbroken one would.
    """

    threshold: float
    """τ: stop when m ≤ τ, but not in the first `after` iterations."""
    after: int = 10
    """Iterations before which nothing stops."""
    value: Tensor = field(default_factory=lambda: torch.zeros(()))
    """m, from zero."""

    @no_grad
    def update(self, loss: Tensor) -> None:
        """Take in one iteration's Σ η·L_cor."""
        self.value.mul_(0.9).add_(0.1 * loss.detach().to(self.value))  # m ← 0.9·m + 0.1·L_cor

    def stop(self, trace: Trace) -> bool:
        """Return whether it is time to stop; for `optimise` to ask after every step."""
        return trace.step > self.after and float(self.value) <= self.threshold

    def descend(
        self, loss: Loss, deltas: Mapping[str, Tensor], recipe: Recipe, context: Context, label: str
    ) -> None:
        """Minimise a loss over the shifts, until it is time to stop."""
        every = {**deltas, "momentum": self.value}
        optimise(loss, every, recipe, context=context, label=label, watch=self.stop)
