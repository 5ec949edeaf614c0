"""Trade time for memory where a method says so; `--memory low` does it for every method."""

from __future__ import annotations

from contextlib import AbstractContextManager

from palimpsest.models.diffusion import Diffusion
from palimpsest.models.recompute import forgetful


def checkpointed(model: Diffusion) -> AbstractContextManager[None]:
    """Let every block of the U-Net be computed again in the backward pass."""
    return forgetful(model.sites.blocks)
