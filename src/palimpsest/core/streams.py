"""Random generators that depend on a seed and an index alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


FORMER: dict[str, tuple[int, ...]] = {
    "training": (),
    "pictures": (1,),
    "retained pictures": (2,),
    "anchor pictures": (3,),
    "vectors": (2,),
    "adapters": (2,),
    "mask": (3,),
    "trim": (3,),
    "retained prompts": (3,),
    "epochs": (2,),
    "search": (3,),
    "search, others": (4,),
    "captions": (1,),
    "words": (1,),
    "noise": (),
    "population": (),
}
"""Stream by name → the integers that it had."""


def generator(seed: int, *index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that depends on `seed` and `index` alone, well mixed."""
    import torch

    mixed = seed & 0x7FFFFFFFFFFFFFFF
    for part in index:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return torch.Generator(device=device).manual_seed(mixed)


def stream(seed: int, name: str, *index: int) -> torch.Generator:
    """Return the random stream of that name: it depends on seed, name and index alone."""
    return generator(seed, *FORMER[name], *index)
