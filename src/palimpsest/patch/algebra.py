"""Patches as an algebra: what they share, what they make together, the nearest one of low rank.

All of it is about shifts of weights: a patch with a sampling hook is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod, sqrt
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.patch import Patch
from palimpsest.patch.edits import Edit, LowRank, Replacement, Rows, energy, inner, shape_of

if TYPE_CHECKING:
    from torch import Tensor

NOTABLE = 0.1
"""The cosine, in absolute value, from which on two patches are said to overlap in a parameter."""


# --- overlaps ---


def energies(patch: Patch) -> dict[str, float]:
    """Parameter → ‖ΣΔ‖² of its edits; NaN for one that is replaced whole."""
    return {name: energy(edits) for name, edits in patch.edits.items()}


@dataclass(frozen=True)
class Overlap:
    """How far two patches pull at the same parameter."""

    pair: tuple[int, int]
    """Which two patches, counted from 0."""
    name: str
    """The parameter."""
    cosine: float
    """⟨Δ, Δ'⟩/(‖Δ‖·‖Δ'‖): 1 the same way, −1 against one another; NaN where one replaces the
    parameter whole."""
    shares: tuple[float, float]
    """How much of each patch's energy, the sum of its squared shifts, lies in this parameter."""

    @property
    def notable(self) -> bool:
        """Whether a person should hear of it."""
        return not abs(self.cosine) < NOTABLE


def overlaps(first: Patch, second: Patch, pair: tuple[int, int] = (0, 1)) -> list[Overlap]:
    """Return an overlap for every parameter that both touch, orthogonal ones included.

    Raises:
        PalimpsestError: a patch with a sampling hook.
    """
    for patch in (first, second):
        patch.refuse_hook("compared")
    ours, theirs = energies(first), energies(second)
    totals = [sum(e for e in each.values() if e == e) or 1.0 for each in (ours, theirs)]
    found = []
    for name in (name for name in ours if name in theirs):
        a, b = ours[name], theirs[name]
        product = inner(first.edits[name], second.edits[name])
        cosine = product / sqrt(a * b) if a and b else 0.0
        found.append(Overlap(pair, name, cosine, (a / totals[0], b / totals[1])))
    return found


def overall(found: Iterable[Overlap]) -> tuple[float, float, float]:
    """Return a pair's overlaps in one: the cosine of the patches, and the shares that they share.

    The whole cosine is Σ cosᵢ·√(sᵢ·sᵢ') over the parameters i. Replaced ones are left out.
    """
    known = [o for o in found if o.cosine == o.cosine]
    cosine = sum(o.cosine * sqrt(prod(o.shares)) for o in known)
    first, second = (sum(o.shares[side] for o in known) for side in (0, 1))
    return cosine, first, second


def compose(patches: Sequence[Patch]) -> tuple[Patch, list[Overlap]]:
    """Return the sum of all patches, and where two of them overlap notably, the strongest first.

    Raises:
        PalimpsestError: no patch, patches that cannot be added, or one with a sampling hook.
    """
    if not patches:
        raise PalimpsestError("there is no patch to compose; name at least one")
    for patch in patches:
        patch.refuse_hook("composed")
    joint = sum(patches[1:], patches[0])
    if len(patches) > 2:  # told flat, not as sums of sums
        joint = replace(joint, about={"sum": [dict(patch.about) for patch in patches]})
    pairs = combinations(range(len(patches)), 2)
    found = [o for i, j in pairs for o in overlaps(patches[i], patches[j], (i, j)) if o.notable]
    return joint, sorted(found, key=lambda o: -abs(o.cosine) if o.cosine == o.cosine else -2.0)


# --- low rank ---


def truncated(patch: Patch, rank: int, smaller: bool = False) -> tuple[Patch, float]:
    """Return the nearest patch of matrices of at most `rank` (Eckart and Young 1936), factored.

    Edits that are of that rank already stay as they are, and so do shifts of rows and of vectors.
    Singular values below float32's rounding of the whole matrix are left out: an edit of a lower
    rank comes out in that.

    Args:
        patch: what to cut; a convolution counts as a matrix, (out, everything else).
        rank: singular values kept.
        smaller: leave a tensor as it is, too, if two factors would hold no fewer entries.

    Returns:
        The patch, and what was lost of its norm, ‖Δ − Δ'‖/‖Δ‖ in [0, 1].

    Raises:
        PalimpsestError: a rank below 1, above that of every matrix, a tensor replaced whole, or a
            sampling hook.
    """
    patch.refuse_hook("cut to a rank")
    check_rank({name: whole_shape(edits) for name, edits in patch.edits.items()}, rank)
    edits, lost = {}, 0.0
    for name, own in patch.edits.items():
        cut, tail = _truncate(name, own, rank)
        if smaller and entries(cut) >= entries(own):
            cut, tail = own, 0.0
        edits[name] = cut
        lost += tail
    total = sum(energies(patch).values())
    residual = sqrt(lost / total) if total else 0.0
    about = {"truncated": rank, "residual": round(residual, 6), "of": dict(patch.about)}
    return replace(patch, edits=edits, about=about), residual


def check_rank(shapes: Mapping[str, Sequence[int]], rank: int, smaller: bool = False) -> None:
    """Refuse a rank that no tensor could be cut to, or with `smaller` none be made smaller by.

    Raises:
        PalimpsestError: naming the rank and the highest one that does something.
    """
    if rank < 1:
        raise PalimpsestError(f"rank is {rank}; it must be at least 1")
    sides = {name: (s[0], prod(s[1:])) for name, s in shapes.items() if len(s) > 1}
    most = max(sides, key=lambda name: min(sides[name]), default="")
    if most and min(sides[most]) < rank:
        raise PalimpsestError(
            f"rank is {rank}, but no matrix of the patch has a rank above {min(sides[most])} "
            f"({most})"
        )
    if smaller and not any(rank * (m + n) < m * n for m, n in sides.values()):
        saves = max([(m * n - 1) // (m + n) for m, n in sides.values()], default=0)
        raise PalimpsestError(
            f"rank is {rank}, which makes no tensor of the patch smaller; the highest that does "
            f"is {saves}"
        )


def entries(edits: Iterable[Edit]) -> int:
    """Return how many numbers they hold."""
    return sum(tensor.numel() for edit in edits for tensor in vars(edit).values())


def whole_shape(edits: Iterable[Edit]) -> tuple[int, ...]:
    """Return the shape of the parameter as far as its edits tell; () if they shift rows alone."""
    shapes = [shape_of(edit) for edit in edits if not isinstance(edit, Rows)]
    return max(shapes, key=len, default=())


def rank_limit(edits: Iterable[Edit]) -> int:
    """Return the highest rank a parameter's shift can have; 0 for vectors, and rows alone."""
    shape = whole_shape(edits)
    return min(shape[0], prod(shape[1:])) if len(shape) > 1 else 0


def _truncate(name: str, edits: tuple[Edit, ...], rank: int) -> tuple[tuple[Edit, ...], float]:
    """Edits of at most `rank`, and the energy that was lost."""
    if any(isinstance(edit, Replacement) for edit in edits):
        raise PalimpsestError(
            f"{name} is replaced whole, which has no low rank; export the whole model instead"
        )
    slim = all(isinstance(edit, LowRank) and edit.up.shape[1] <= rank for edit in edits)
    if slim or not rank_limit(edits):
        return edits, 0.0
    if len(edits) == 1 and isinstance(edits[0], LowRank):
        up, down, lost = _of_product(edits[0], rank)
    else:
        zero = torch.zeros(whole_shape(edits))
        total = sum((edit.shift(zero).double() for edit in edits), zero.double())  # type: ignore[union-attr]
        up, down, lost = _of_matrix(total.flatten(1), rank)
    # what float32 cannot tell from rounding is noise, in a direction that differs between machines
    sizes = up.norm(dim=0), down.norm(dim=1)
    least = torch.finfo(torch.float32).eps * (energy(edits) ** 0.5)
    real = (sizes[0] * sizes[1] > least).index_fill(0, torch.tensor(0), True)
    up, down = up[:, real], down[real]
    flip = up.gather(0, up.abs().argmax(0)[None])[0].sign().where(up.any(0), 1.0)
    up, down = up * flip, down * flip[:, None]
    # halved between the factors, so that neither grows out of half precision
    sizes = up.norm(dim=0), down.norm(dim=1)
    root = (sizes[1] / sizes[0]).sqrt().where((sizes[0] > 0) & (sizes[1] > 0), 1.0)
    factors = LowRank((up * root).float().contiguous(), (down / root[:, None]).float().contiguous())
    return (factors,), lost


def _of_product(edit: LowRank, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the nearest product of fewer factors, by their small triangles; the energy lost."""
    left, upper = torch.linalg.qr(edit.up.double())
    right, lower = torch.linalg.qr(edit.down.double().T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    up, down = left @ u[:, :rank] * s[:rank], v[:rank] @ right.T
    return up, down, float(s[rank:].square().sum())


def _of_matrix(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the nearest product of that rank, and the energy lost.

    The singular vectors come from the Gram matrix of the shorter side, in float64: that spares the
    longer side's, of which a convolution has thousands.
    """
    if matrix.shape[0] > matrix.shape[1]:
        down, up, lost = _of_matrix(matrix.T, rank)
        return up.T, down.T, lost
    up = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:].flip(1)
    down = up.T @ matrix
    return up, down, float((matrix - up @ down).square().sum())
