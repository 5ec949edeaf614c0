"""Shifts that are trained as products of two factors, Δ = up·down, in place of every entry.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. Under
training the two factors of a weight are tensors of their own, by its name with `|up` and `|down`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from palimpsest.patch.edits import Dense, Edit, LowRank

if TYPE_CHECKING:
    from torch import Tensor

Factors: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""(up, down) by canonical name, (out, rank) and (rank, in)."""
SIDES = ("up", "down")


def carries(name: str, shape: Sequence[int]) -> bool:
    """Return whether a LoRA may move it: the weight of a linear layer or a convolution."""
    unfit = "_embedding.weight" in name or name.endswith("text_projection.weight")
    return name.endswith(".weight") and not unfit and len(shape) in (2, 4)


def untrained(
    weights: Mapping[str, Tensor],
    rank: int,
    g: torch.Generator,
    init: Literal["normal", "uniform"] = "uniform",
) -> Factors:
    """Draw factors beside weights: `up` is zero, so they shift nothing yet.

    Args:
        weights: (out, in, …) each.
        rank: of each factor.
        g: draws `down`.
        init: what `down` is drawn from, N(0, 1/rank²) or uniformly in ±1/√in.
    """
    found = {}
    for name, weight in weights.items():
        wide = weight[0].numel()
        if init == "normal":
            down = torch.randn(rank, wide, generator=g) / rank
        else:
            down = (2 * torch.rand(rank, wide, generator=g) - 1) / wide**0.5
        up = torch.zeros(len(weight), rank, device=weight.device)
        found[name] = (up.requires_grad_(), down.to(weight.device).requires_grad_())
    return found


def parameters(factors: Factors) -> dict[str, Tensor]:
    """Return factors one by one, for an optimiser."""
    return {
        f"{name}|{side}": part
        for name, pair in factors.items()
        for side, part in zip(SIDES, pair, strict=True)
    }


def ranks(weights: Mapping[str, Tensor], rank: int) -> dict[str, int]:
    """Return the rank of each weight's factors: no higher than its own; norms and biases have none.

    Args:
        weights: by canonical name.
        rank: that is asked for.
    """
    own = {n: min(len(W), W[0].numel()) for n, W in weights.items() if carries(n, W.shape)}
    return {name: min(rank, most) for name, most in own.items()}


def apart(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Return what is trained of each weight: its Δ alone, or up and down."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for key, tensor in tensors.items():
        name, _, side = key.partition("|")
        if not side:
            found[name] = (tensor,)
        elif side == SIDES[0]:
            found[name] = (tensor, tensors[f"{name}|{SIDES[1]}"])
    return found


def shift(parts: tuple[Tensor, ...], shape: Sequence[int]) -> Tensor:
    """Return Δ of that shape."""
    return parts[0] if len(parts) == 1 else (parts[0] @ parts[1]).reshape(*shape)


def edit(parts: tuple[Tensor, ...]) -> Edit:
    """Return the edit that a weight's training made, in float32 on the CPU."""
    kept = [part.detach().float().cpu() for part in parts]
    return Dense(kept[0]) if len(kept) == 1 else LowRank(*kept)
