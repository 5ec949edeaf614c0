"""Gradients over many tensors at once: the entries that matter most, steps that spare a loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def gradient(loss: Tensor, parameters: Tensors) -> dict[str, Tensor]:
    """∇ of a scalar by parameter name, zero where the loss does not depend on one."""
    parts = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, parts, strict=True))


def dot(a: Tensors, b: Tensors) -> float:
    """⟨a, b⟩ over all entries."""
    return float(torch.stack([a[name].flatten() @ b[name].flatten() for name in a]).sum())


def strongest(scores: Tensors, share: float) -> dict[str, Tensor]:
    """Masks of the `share` of all entries, over all tensors together, whose score is highest.

    Entries that tie with the last one chosen are chosen too.
    """
    every = torch.cat([score.flatten() for score in scores.values()])
    count = max(1, round(share * len(every)))
    threshold = every.kthvalue(len(every) - count + 1).values
    return {name: score >= threshold for name, score in scores.items()}


def nearest(g: Tensors, h: Tensors, least: float = 0.0) -> dict[str, Tensor]:
    """The direction nearest to `g` whose inner product with `h` is at least `least`.

    Closed form of the quadratic program of GEM (Lopez-Paz & Ranzato 2017, eq. 10) for one
    constraint: g + v·h with v = max(0, (least − ⟨g, h⟩)/‖h‖²).
    """
    short = least - dot(g, h)
    if short <= 0:
        return dict(g)
    v = short / dot(h, h)
    return {name: g[name] + v * h[name] for name in g}


def along(value: Tensor, parameters: Tensors, g: Tensors) -> Tensor:
    """A scalar that has this value and, by `parameters`, the gradient `g`."""
    slopes = [(g[name] * (p - p.detach())).sum() for name, p in parameters.items()]
    return value.detach() + sum(slopes[1:], slopes[0])
