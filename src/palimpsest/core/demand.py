"""What a step of a method holds at once, by which its memory is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from palimpsest.core.errors import Settings


@dataclass(frozen=True)
class Demand:
    """What one step of a method holds at once; a method says it in `demand`."""

    graded: int = 0
    """Latents whose predictions are differentiated together; 0 of a method that trains nothing."""
    plain: int = 0
    """Latents that are predicted without gradient while those are held."""
    prompts: int = 0
    """Prompts through whose embedding the gradient goes."""
    maps: bool = False
    """Whether attention maps are differentiated in place of predictions."""
    rank: int = 0
    """Rank of a LoRA beside the weights; 0 where weights are shifted."""
    beside: int = 0
    """Bytes that an entry that moves takes besides its shift, gradient and moments."""
    inner: int = 0
    """Further ones, which are on the CPU with low memory."""
    host: int = 0
    """Bytes that an entry that moves takes on the CPU, whatever the device; 4 is its patch."""
    summed: bool = False
    """Whether the gradient is kept from step to step."""
    again: bool = False
    """Whether the denoiser's blocks are computed again whatever the memory."""
    encoded: int = 0
    """Pictures that are encoded, or decoded for that, at once; 0 of a method that encodes none."""
    other: int = 0
    """Bytes of other networks that it loads."""


ENCODED = 16
"""Pictures that an autoencoder is given at once, at most, without low memory."""


def usual(method: Any) -> Demand:
    """Return what a method holds whose step is one batch of `batch` or `latents.batch` latents.

    Latents that are sampled for a step take two predictions each, without gradient.
    """
    inside = getattr(getattr(method, "latents", None), "batch", None)
    batch = inside or getattr(method, "batch", None)
    if not hasattr(method, "steps") or not isinstance(batch, int):
        return Demand()
    summed = getattr(method, "gradients", "fresh") == "summed"
    return Demand(batch, plain=2 * inside if inside else 0, summed=summed)


class Demanding(Settings):
    """Settings that say what a step holds, and whether there are steps of an optimiser."""

    @property
    def trains(self) -> bool:
        """Whether it takes steps of an optimiser: it then has a learning rate."""
        return hasattr(self, "lr")

    def demand(self, model: Any) -> Demand:
        """Return what one of its steps holds at once, by which its memory is counted."""
        return usual(self)
