"""Gradients over many tensors at once: largest entries, and steps that do not raise a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"


def gradient(loss: Tensor, parameters: Tensors) -> dict[str, Tensor]:
    """Return ∇ of a scalar by parameter name, zero where the loss does not depend on one."""
    parts = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, parts, strict=True))


def dot(a: Tensors, b: Tensors) -> float:
    """Return ⟨a, b⟩ over all entries."""
    return float(torch.stack([a[name].flatten() @ b[name].flatten() for name in a]).sum())


def strongest(scores: Tensors, share: float) -> dict[str, Tensor]:
    """Return masks of the entries with the highest scores, over all tensors together.

    They are a `share` of all entries. Entries that tie with the last one chosen are chosen too.
    Scores are at least 0, in float32.
    """
    count = max(1, round(share * sum(score.numel() for score in scores.values())))
    least, most = 0, 0x7F800000  # 0 and ∞: floats of one sign are in the order of their bits
    while most - least > 1:  # no copy of all of them is sorted, which would not fit
        middle = (least + most) // 2
        bound = torch.tensor(middle, dtype=torch.int32).view(torch.float32).item()
        enough = sum((score >= bound).sum() for score in scores.values()) >= count
        least, most = (middle, most) if enough else (least, middle)
    threshold = torch.tensor(least, dtype=torch.int32).view(torch.float32).item()
    return {name: score >= threshold for name, score in scores.items()}


def nearest(g: Tensors, h: Tensors, least: float = 0.0) -> dict[str, Tensor]:
    """Return the direction nearest to `g` whose inner product with `h` is at least `least`.

    This is the closed form of GEM's quadratic program (Lopez-Paz & Ranzato 2017, eq. 10) for one
    constraint: g + v·h with v = max(0, (least − ⟨g, h⟩)/‖h‖²).
    """
    short = least - dot(g, h)
    if short <= 0:
        return dict(g)
    v = short / dot(h, h)
    return {name: g[name] + v * h[name] for name in g}  # eq. 10


def along(value: Tensor, parameters: Tensors, g: Tensors) -> Tensor:
    """Return a scalar that has this value and, by `parameters`, the gradient `g`."""
    slopes = [(g[name] * (p - p.detach())).sum() for name, p in parameters.items()]
    return value.detach() + sum(slopes[1:], slopes[0])
