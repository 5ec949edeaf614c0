"""Trade time for memory: a U-Net's blocks forget what happened inside and compute it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.models.diffusion import Diffusion

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def checkpointed(model: Diffusion) -> Iterator[None]:
    """Let every block of the U-Net be computed again in the backward pass.

    Diffusers' own gradient checkpointing would compute with the module's weights again, which are
    no longer those of the view under training when the backward pass comes. Here each block takes
    the weights of its forward pass along.
    """
    blocks = model.sites.blocks
    for block in blocks:
        block.forward = _forgetful(block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _forgetful(block: nn.Module):
    """Return the block's forward pass, whose insides are not kept."""
    from torch.utils.checkpoint import checkpoint

    inner = block.forward

    def again(weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block.forward = inner
        try:
            return torch.func.functional_call(block, weights, args, kwargs)
        finally:
            block.forward = forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        weights = dict(block.named_parameters())
        return checkpoint(again, weights, args, kwargs, use_reentrant=False)

    return forward
