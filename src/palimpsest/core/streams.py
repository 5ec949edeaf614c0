"""Random generators that depend on a seed, a name and an index alone."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(seed: int, *index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator that depends on `seed` and `index` alone, well mixed."""
    import torch

    mixed = seed & 0x7FFFFFFFFFFFFFFF
    for part in index:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return torch.Generator(device=device).manual_seed(mixed)


def stream(seed: int, name: str, *index: int) -> torch.Generator:
    """Return the random stream of that name: it depends on seed, name and index alone.

    Streams of two names share no draws, whatever their indices.
    """
    return generator(seed, zlib.crc32(name.encode()), *index)
