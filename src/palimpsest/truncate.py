"""A patch at low rank: every shift as the nearest product of two thin matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from palimpsest.patch import Dense, Edit, LowRank, Patch
from palimpsest.types import PalimpsestError


def truncated(patch: Patch, rank: int) -> tuple[Patch, float]:
    """The patch with every dense shift cut to its `rank` largest singular values.

    A tensor that two factors would not make smaller, such as a bias, stays whole.

    Args:
        patch: what to cut; replacements and shifts of rows pass unchanged.
        rank: singular values kept; convolutions are flattened to (out, everything else).

    Returns:
        The smaller patch, and ‖Δ − Δ_rank‖/‖Δ‖ over all dense shifts together.

    Raises:
        PalimpsestError: the rank is so high that not one tensor would become smaller.
    """
    shapes = [e.delta.shape for es in patch.edits.values() for e in es if isinstance(e, Dense)]
    check_rank(shapes, rank)
    edits: dict[str, tuple[Edit, ...]] = {}
    lost = total = 0.0
    for name, whole in patch.edits.items():
        kept: list[Edit] = []
        for edit in whole:
            light: Edit = edit
            if isinstance(edit, Dense):
                total += float(edit.delta.double().square().sum())
                if shrinks(edit.delta.shape, rank):
                    light, rest = factored(edit.delta, rank)
                    lost += rest
            kept.append(light)
        edits[name] = _one_of_each(kept)
    return replace(patch, edits=edits), (lost / total) ** 0.5 if total else 0.0


def factored(delta: Tensor, rank: int) -> tuple[LowRank, float]:
    """The nearest shift of this rank (Eckart and Young 1936), and ‖Δ − Δ_rank‖².

    The singular vectors come from the Gram matrix of the shorter side, in float64: that spares the
    longer side's, of which a convolution has thousands.
    """
    matrix = delta.double().flatten(1)
    if matrix.shape[0] <= matrix.shape[1]:
        basis = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]
        up, down = basis, basis.T @ matrix
    else:
        basis = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:]
        up, down = matrix @ basis, basis.T
    rest = float((matrix - up @ down).square().sum())
    return LowRank(up.float().contiguous(), down.float().contiguous()), rest


def shrinks(shape: Sequence[int], rank: int) -> bool:
    """Whether two factors of this rank hold fewer entries than a tensor of this shape."""
    return len(shape) > 1 and rank * (shape[0] + prod(shape[1:])) < prod(shape)


def check_rank(shapes: Iterable[Sequence[int]], rank: int) -> None:
    """Refuse a rank at which not one of the tensors would become smaller.

    Raises:
        PalimpsestError: naming the rank and the highest one that saves anything.
    """
    shapes = list(shapes)
    if rank < 1:
        raise PalimpsestError(f"the rank is {rank}; it must be at least 1")
    if not any(shrinks(shape, rank) for shape in shapes):
        sides = [(s[0], prod(s[1:])) for s in shapes if len(s) > 1]
        most = max([(m * n - 1) // (m + n) for m, n in sides], default=0)
        raise PalimpsestError(
            f"rank {rank} makes no tensor of the patch smaller; the highest that does is {most}"
        )


def _one_of_each(edits: list[Edit]) -> tuple[Edit, ...]:
    """Join low-rank shifts: a patch holds at most one edit of each kind for a tensor."""
    merged: dict[type, Edit] = {}
    for edit in edits:
        mine = merged.get(type(edit))
        both = isinstance(mine, LowRank) and isinstance(edit, LowRank)
        merged[type(edit)] = mine.plus(edit) if both else edit  # type: ignore[union-attr]
    return tuple(merged.values())
