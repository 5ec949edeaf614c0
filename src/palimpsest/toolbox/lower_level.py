"""The lower level of a method of two levels: some steps down from θ, after which θ is put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.toolbox.gradients import gradient

if TYPE_CHECKING:
    from torch import Tensor


def lowest(
    loss: Callable[[], Tensor],
    theta: Mapping[str, Tensor],
    steps: int,
    lr: float,
    resting: torch.device | str,
) -> Tensor:
    """Return the loss at θᴷ, K steps of Adam down from θ, without a gradient; θ is put back.

    Args:
        loss: computes the scalar loss with `theta` as it is.
        theta: the tensors under training, by name; their own optimiser stays as it is.
        steps: K.
        lr: Adam's learning rate.
        resting: where θ, the steps and their moments lie.
    """
    start = [part.detach().to(resting, copy=True) for part in theta.values()]
    lower = [part.clone().requires_grad_() for part in start]
    adam = torch.optim.Adam(lower, lr=lr)
    for _ in range(steps):
        found = gradient(loss(), theta)
        for part, name in zip(lower, theta, strict=True):
            part.grad = found.pop(name).to(resting)
        adam.step()
        _put(lower, theta)
    with torch.no_grad():
        reached = loss()
    _put(start, theta)
    return reached


def _put(values: Sequence[Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy values into tensors under training."""
    for value, own in zip(values, into.values(), strict=True):
        own.data.copy_(value.detach())
