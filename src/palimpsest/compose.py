"""Patches as an algebra: what they share, what they make together, the nearest one of low rank.

Every product here is Frobenius', ⟨A, B⟩ = tr(AᵀB), taken in float64. Where an edit is a product of
factors it is taken from those (⟨A, UV⟩ = ⟨UᵀA, V⟩), so that no low-rank edit is multiplied out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import nan, prod, sqrt

import torch
from torch import Tensor

from palimpsest.patch import Dense, Edit, LowRank, Patch, Replacement, Rows, shape_of
from palimpsest.types import PalimpsestError

NOTABLE = 0.1
"""The cosine, in absolute value, from which on two patches are said to overlap in a parameter."""


# --- products ---


def inner(ours: Iterable[Edit], theirs: Iterable[Edit]) -> float:
    """⟨ΣΔ, ΣΔ'⟩ of the edits of one parameter; NaN if a replacement, which has no Δ, is among them.

    Raises:
        PalimpsestError: an edit that is no shift of weights.
    """
    theirs = tuple(theirs)
    return sum(_product(a, b) for a in ours for b in theirs)


def _product(a: Edit, b: Edit) -> float:
    match a, b:
        case (Replacement(), _) | (_, Replacement()):
            return nan
        case (Dense(), Dense()):
            return _dot(a.delta, b.delta)
        case (_, LowRank()):
            return _dot(_from_left(b.up, a), b.down)  # ⟨A, UV⟩ = ⟨UᵀA, V⟩
        case (_, Rows()):
            return _dot(_rows(a, b.index), b.delta)
        case (LowRank() | Rows(), Dense()):
            return _product(b, a)
    raise PalimpsestError(f"{type(a).__name__} and {type(b).__name__} have no product: no shifts")


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.reshape(-1).double() @ b.reshape(-1).double())


def _from_left(up: Tensor, edit: Edit) -> Tensor:
    """(rank, in) upᵀ·Δ."""
    left = up.double().T
    if isinstance(edit, LowRank):
        return (left @ edit.up.double()) @ edit.down.double()
    if isinstance(edit, Rows):
        left = left[:, edit.index]
    return left @ _matrix(edit)


def _rows(edit: Edit, index: Tensor) -> Tensor:
    """(k, in) those rows of Δ."""
    if isinstance(edit, LowRank):
        return edit.up[index].double() @ edit.down.double()
    if isinstance(edit, Rows):
        return (index[:, None] == edit.index).double() @ _matrix(edit)
    return _matrix(edit)[index]


def _matrix(edit: Edit) -> Tensor:
    """(rows, in) Δ of one that stores it, of `Rows` its own rows alone."""
    assert isinstance(edit, (Dense, Rows))
    return edit.delta.reshape(len(edit.delta), -1).double()


def energies(patch: Patch) -> dict[str, float]:
    """Parameter → ‖ΣΔ‖² of its edits; NaN for one that is replaced whole."""
    return {name: max(inner(es, es), 0.0) for name, es in patch.edits.items()}


# --- overlaps ---


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
    """An overlap for every parameter that both touch, orthogonal ones included."""
    ours, theirs = energies(first), energies(second)
    totals = [sum(e for e in each.values() if e == e) or 1.0 for each in (ours, theirs)]
    found = []
    for name in (name for name in ours if name in theirs):
        a, b = ours[name], theirs[name]
        product = inner(first.edits[name], second.edits[name])
        cosine = product / sqrt(a * b) if a and b else 0.0
        found.append(Overlap(pair, name, cosine, (a / totals[0], b / totals[1])))
    return found


def together(found: Iterable[Overlap]) -> tuple[float, float, float]:
    """One pair's overlaps in one: the cosine of the whole patches, and the shares that they share.

    The whole cosine is Σ cosᵢ·√(sᵢ·sᵢ') over the parameters i. Replaced ones are left out.
    """
    known = [o for o in found if o.cosine == o.cosine]
    cosine = sum(o.cosine * sqrt(prod(o.shares)) for o in known)
    first, second = (sum(o.shares[side] for o in known) for side in (0, 1))
    return cosine, first, second


def compose(patches: Sequence[Patch]) -> tuple[Patch, list[Overlap]]:
    """The sum of all patches, and where two of them overlap notably, the strongest first.

    Raises:
        PalimpsestError: no patch, or patches that cannot be added.
    """
    if not patches:
        raise PalimpsestError("there is no patch to compose; name at least one")
    joint = patches[0]
    for patch in patches[1:]:
        joint = joint + patch
    if len(patches) > 2:  # told flat, not as sums of sums
        joint = replace(joint, about={"sum": [dict(patch.about) for patch in patches]})
    pairs = combinations(range(len(patches)), 2)
    found = [o for i, j in pairs for o in overlaps(patches[i], patches[j], (i, j)) if o.notable]
    return joint, sorted(found, key=lambda o: -abs(o.cosine) if o.cosine == o.cosine else -2.0)


# --- low rank ---


def truncated(patch: Patch, rank: int) -> tuple[Patch, float]:
    """The nearest patch whose matrices have at most `rank` (Eckart and Young 1936), factored.

    Edits that are of that rank already stay as they are, and so do shifts of rows and of vectors.

    Returns:
        The patch, and what was lost of its norm, ‖Δ − Δ'‖/‖Δ‖ in [0, 1].

    Raises:
        PalimpsestError: a rank below 1, above that of every matrix, or a tensor replaced whole.
    """
    if rank < 1:
        raise PalimpsestError(f"rank is {rank}; it must be at least 1")
    limits = {name: rank_limit(edits) for name, edits in patch.edits.items()}
    most = max(limits, key=lambda name: limits[name], default="")
    if most and 0 < limits[most] < rank:
        raise PalimpsestError(
            f"rank is {rank}, but no matrix of the patch has a rank above {limits[most]} ({most})"
        )
    edits, lost, total = {}, 0.0, 0.0
    for name, own in patch.edits.items():
        total += inner(own, own)
        edits[name], tail = _truncate(name, own, rank)
        lost += tail
    residual = sqrt(lost / total) if total else 0.0
    about = {"truncated": rank, "residual": residual, "of": dict(patch.about)}
    return replace(patch, edits=edits, about=about), residual


def rank_limit(edits: Iterable[Edit]) -> int:
    """The highest rank that the shift of one parameter can have; 0 for vectors, and rows alone."""
    shapes = [shape_of(edit) for edit in edits if not isinstance(edit, Rows)]
    return max((min(s[0], prod(s[1:])) for s in shapes if len(s) > 1), default=0)


def _truncate(name: str, edits: tuple[Edit, ...], rank: int) -> tuple[tuple[Edit, ...], float]:
    """Edits of at most `rank`, and the energy that was lost."""
    if any(isinstance(edit, Replacement) for edit in edits):
        raise PalimpsestError(
            f"{name} is replaced whole, which has no low rank; export the whole model instead"
        )
    slim = all(isinstance(edit, LowRank) and edit.up.shape[1] <= rank for edit in edits)
    if slim or not rank_limit(edits):
        return edits, 0.0
    u, s, v = _svd(edits)
    root = s[
        :rank
    ].sqrt()  # halved between the factors, so that neither grows out of half precision
    factors = LowRank((u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float())
    return (factors,), float(s[rank:].square().sum())


def _svd(edits: tuple[Edit, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, Vᵀ of a parameter's shift; of factors alone by way of their small triangles."""
    if len(edits) == 1 and isinstance(edits[0], LowRank):
        left, upper = torch.linalg.qr(edits[0].up.double())
        right, lower = torch.linalg.qr(edits[0].down.double().T)
        u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        return left @ u, s, v @ right.T
    whole = max((shape_of(e) for e in edits if not isinstance(e, Rows)), key=len)
    like = torch.zeros(whole)
    total = sum((edit.shift(like).double() for edit in edits), like.double())  # type: ignore[union-attr]
    return torch.linalg.svd(total.reshape(whole[0], -1), full_matrices=False)
