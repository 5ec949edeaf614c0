"""What rounding to a model's precision leaves of an edit.

A weight in float16 or bfloat16 can only be where that type has a number. A shift of less than half
the gap between two such numbers is rounded away, W + Δ = W, and with it what was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf, nan, sqrt
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.patch.edits import Edit, Replacement

if TYPE_CHECKING:
    from torch import Tensor

TOLD = 0.05
"""From this share of an edit's norm on, its loss is told."""


def lost(
    edits: Mapping[str, Iterable[Edit]],
    weight: Callable[[str], Tensor],
    dtype: Callable[[str], torch.dtype],
) -> float:
    """Return the share of an edit's norm that rounding takes away.

    It is ‖(round(W + Δ) − round(W)) − Δ‖ / ‖Δ‖, the norms taken over all tensors together, where Δ
    of a tensor that is replaced is the difference from the base's. It is 0 where W + Δ can be
    stored as it is and 1 where no weight moves; W being a number of the type already, it is never
    more. One tensor at a time is in memory.

    Args:
        edits: parameter → what is done to it.
        weight: returns the tensor W of a parameter, unedited.
        dtype: returns the type that a parameter is rounded to.

    Returns:
        A share from 0 up; NaN of an edit that shifts nothing.
    """
    error = energy = 0.0
    for name, each in edits.items():
        base, kind = weight(name).detach(), dtype(name)
        delta = _shift(base, each)
        moved = (base.float() + delta).to(kind).float() - base.to(kind).float()
        error += float(torch.linalg.vector_norm(moved - delta)) ** 2
        energy += float(torch.linalg.vector_norm(delta)) ** 2
    return sqrt(error / energy) if energy else nan


def _shift(base: Tensor, edits: Iterable[Edit]) -> Tensor:
    """Return ΣΔ in float32, of the base's shape and on its device."""
    total = torch.zeros_like(base, dtype=torch.float32)
    for edit in edits:
        replaced = isinstance(edit, Replacement)
        total += edit.value.to(base.device).float() - base.float() if replaced else edit.shift(base)
    return total


def share(about: Mapping[str, Any]) -> float | None:
    """Return the share that a patch's `about` says it lost in rounding; None if it says none."""
    found = about.get("rounding")
    lost = found.get("lost") if isinstance(found, Mapping) else None
    return lost if isinstance(lost, float) and 0 <= lost < inf else None


def told(lost: float | None, dtype: torch.dtype) -> str | None:
    """Return what is said of an edit that lost much in rounding, with the cure; None of another."""
    if lost is None or lost <= TOLD:
        return None
    return (
        f"rounding to {named(dtype)} takes {said(lost)} of the edit's norm; load the base in "
        "float32 (--dtype float32)"
    )


def said(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"


def named(dtype: torch.dtype) -> str:
    """Return a type's name, as people give it."""
    return str(dtype).removeprefix("torch.")
