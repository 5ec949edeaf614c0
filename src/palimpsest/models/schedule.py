"""Noise schedules: arithmetic on times, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError

if TYPE_CHECKING:
    from torch import Tensor

CLEAN = -1
"""The time behind the last step of a variance-preserving grid."""


@dataclass(frozen=True)
class VariancePreserving:
    """Noise as ᾱ_t of a trained table: Stable Diffusion 1, 2 and XL.

    x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε (Ho et al. 2020, eq. 4). The network predicts ε, v (Salimans & Ho
    2022) or x_0.
    """

    alphas_cumprod: Tensor
    """(levels,) ᾱ_t in float32."""
    final: Tensor
    """() ᾱ behind the last step of the grid."""
    predicts: str
    """`epsilon`, `v_prediction` or `sample`."""
    spaced: Callable[[int], list[int]]
    """Number of steps → their times, from noise to picture."""

    @property
    def levels(self) -> int:
        """Number of times."""
        return len(self.alphas_cumprod)

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times uniformly, on the CPU."""
        return torch.randint(self.levels, (n,), generator=g)

    def between(self, steps: int, i: int, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times uniformly above step i + 1 of the grid and up to step i, on the CPU."""
        times = self.grid(steps)[:-1]
        gap = times[0] - times[1] if len(times) > 1 else 1
        return torch.randint(max(0, times[i] - gap + 1), times[i] + 1, (n,), generator=g)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1−ᾱ_t), (n, 1, 1, 1) each."""
        known = self.alphas_cumprod[t.clamp(min=0)]
        a = torch.where(t < 0, self.final, known).reshape(-1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def split(self, out: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_0 and ε as the network's output means them."""
        a, s = self.scales(t)
        if self.predicts == "v_prediction":
            return a * x_t - s * out, a * out + s * x_t
        if self.predicts == "sample":
            return out, (x_t - a * out) / s
        return (x_t - s * out) / a, out

    def grid(self, steps: int) -> list[int]:
        """Return the times that sampling passes, and the clean end."""
        if not 1 <= steps <= self.levels:
            raise PalimpsestError(f"{steps} sampling steps; there must be 1 to {self.levels}")
        return [*self.spaced(steps), CLEAN]


@dataclass(frozen=True)
class RectifiedFlow:
    """A straight line between picture and noise: Stable Diffusion 3 and FLUX.

    x_t = (1−σ)·x_0 + σ·ε, and the network predicts v = ε − x_0 (Liu et al. 2023; Esser et al.
    2024). A time is σ·levels. With v both x_0 = x_t − σ·v and ε = x_t + (1−σ)·v divide by nothing.
    """

    shift: float = 3.0
    """s in σ' = s·σ/(1 + (s−1)·σ), which moves times toward noise at high resolution."""
    levels: int = 1000
    """What a time is divided by."""

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times whose logit is normal, then shifted, on the CPU (Esser et al., §3.1)."""
        return self.levels * self._shifted(torch.randn(n, generator=g).sigmoid())

    def between(self, steps: int, i: int, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times uniformly above step i + 1 of the grid and up to step i, on the CPU."""
        high, low = self.grid(steps)[i : i + 2]
        return high - (high - low) * torch.rand(n, generator=g)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 − σ and σ, (n, 1, 1, 1) each."""
        s = (t.float() / self.levels).reshape(-1, 1, 1, 1)
        return 1 - s, s

    def split(self, out: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_0 and ε as the velocity means them; exact at σ = 1, too."""
        a, s = self.scales(t)
        return x_t - s * out, x_t + a * out

    def grid(self, steps: int) -> list[float]:
        """Return the times that sampling passes, and the clean end."""
        if not 1 <= steps <= self.levels:
            raise PalimpsestError(f"{steps} sampling steps; there must be 1 to {self.levels}")
        evenly = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        return [*(self.levels * self._shifted(evenly)).tolist(), 0.0]

    def _shifted(self, s: Tensor) -> Tensor:
        return self.shift * s / (1 + (self.shift - 1) * s)
