"""What a patch does to one tensor: the kinds of edits, how they are laid on, and their products.

Every product here is Frobenius', ⟨A, B⟩ = tr(AᵀB), taken in float64. Where an edit is a product of
factors it is taken from those (⟨A, UV⟩ = ⟨UᵀA, V⟩), so that no low-rank edit is multiplied out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan, prod
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.patch.tensor_files import checked_tensor, sides

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """A shift of every entry, Δ, of the tensor's own shape."""

    delta: Tensor

    def shift(self, like: Tensor) -> Tensor:
        """Δ in float32."""
        return self.delta.to(like.device, torch.float32)

    def scaled(self, factor: float) -> Dense:
        """k·Δ."""
        return Dense(self.delta * factor)

    def plus(self, other: Dense) -> Dense:
        """Δ + Δ'."""
        return Dense(self.delta + other.delta)


@dataclass(frozen=True)
class LowRank:
    """A shift that is a product, Δ = up @ down, reshaped to the tensor."""

    up: Tensor
    """(out, rank)."""
    down: Tensor
    """(rank, in), `in` being all further axes of the tensor flattened."""

    def shift(self, like: Tensor) -> Tensor:
        """Δ in float32."""
        up, down = (t.to(like.device, torch.float32) for t in (self.up, self.down))
        return (up @ down).reshape(like.shape)

    def scaled(self, factor: float) -> LowRank:
        """k·Δ, still factored."""
        return LowRank(self.up * factor, self.down)

    def plus(self, other: LowRank) -> LowRank:
        """Δ + Δ', still factored: the ranks add up."""
        return LowRank(torch.cat([self.up, other.up], 1), torch.cat([self.down, other.down], 0))


@dataclass(frozen=True)
class Rows:
    """A shift of some rows, such as the embeddings of a few tokens."""

    index: Tensor
    """(k,) row numbers, each once."""
    delta: Tensor
    """(k, …) their shifts."""

    def shift(self, like: Tensor) -> Tensor:
        """Δ in float32, zero in all other rows."""
        full = torch.zeros(like.shape, device=like.device)
        return full.index_add(0, self.index.to(like.device), self.delta.to(like.device).float())

    def scaled(self, factor: float) -> Rows:
        """k·Δ."""
        return Rows(self.index, self.delta * factor)

    def plus(self, other: Rows) -> Rows:
        """Δ + Δ', over the rows of both."""
        index, place = torch.cat([self.index, other.index]).unique(return_inverse=True)
        both = torch.cat([self.delta, other.delta])
        delta = torch.zeros(len(index), *both.shape[1:], dtype=both.dtype)
        return Rows(index, delta.index_add(0, place, both))


@dataclass(frozen=True)
class Replacement:
    """Another tensor in place of the base's, such as a gold model's."""

    value: Tensor


Edit = Dense | LowRank | Rows | Replacement
KINDS: dict[str, type[Any]] = {
    "dense": Dense,
    "lowrank": LowRank,
    "rows": Rows,
    "replacement": Replacement,
}


def shape_of(edit: Edit) -> tuple[int, ...]:
    """Return its shape: of `LowRank` as a matrix, of `Rows` with the fewest rows."""
    if isinstance(edit, LowRank):
        return edit.up.shape[0], edit.down.shape[1]
    if isinstance(edit, Rows):
        return max(edit.index.tolist(), default=-1) + 1, *edit.delta.shape[1:]
    return tuple(edit.value.shape if isinstance(edit, Replacement) else edit.delta.shape)


def fits(edit: Edit, shape: Sequence[int]) -> bool:
    """Return whether it can be laid over a tensor of that shape."""
    own = shape_of(edit)
    if isinstance(edit, (LowRank, Rows)) and shape:
        rows = own[0] == shape[0] if isinstance(edit, LowRank) else own[0] <= shape[0]
        return rows and prod(own[1:]) == prod(shape[1:])
    return own == tuple(shape)


def refuse_unsound(name: str, edits: Iterable[Edit], read: bool = True) -> None:
    """Refuse edits of a parameter that no weight can be made of.

    Args:
        name: the parameter.
        edits: at most one of each kind.
        read: look at their numbers, too, and not at their form alone.

    Raises:
        PalimpsestError: naming the parameter, the tensor and what is wrong with it.
    """
    kinds = [type(edit) for edit in edits]
    wrong = next((k for k in kinds if k not in KINDS.values() or kinds.count(k) > 1), None)
    if wrong:
        known = wrong in KINDS.values()
        why = "two edits of one kind" if known else "what is no edit"
        raise PalimpsestError(f"{name}: {why} ({wrong.__name__}); a parameter has one of each kind")
    for edit in edits:
        for part, tensor in vars(edit).items():
            what = f"{name}: {type(edit).__name__}.{part}"
            checked_tensor(what, tensor, index=part == "index", read=read)
        if isinstance(edit, LowRank):
            refuse_unpaired(name, edit.up, edit.down)
        elif isinstance(edit, Rows) and edit.delta.shape[:1] != edit.index.shape:
            raise PalimpsestError(
                f"{name}: {len(edit.index)} rows are numbered, and their shift is "
                f"{sides(edit.delta.shape)}"
            )


def refuse_unpaired(name: str, up: Tensor, down: Tensor) -> None:
    """Refuse two factors that have no product, or none of a rank above 0.

    Raises:
        PalimpsestError: naming the parameter and both shapes.
    """
    if not up.ndim == down.ndim == 2 or not 0 < up.shape[1] == down.shape[0]:
        raise PalimpsestError(
            f"{name}: up is {sides(up.shape)} and down is {sides(down.shape)}; (out, rank) and "
            "(rank, in) belong, of one rank above 0"
        )


def refuse_misfits(name: str, edits: Iterable[Edit], shape: Sequence[int], where: str) -> None:
    """Refuse edits of a parameter that were made for another shape than it has `where`.

    Raises:
        PalimpsestError: naming the parameter and both shapes.
    """
    for edit in edits:
        if not fits(edit, shape):
            mine, theirs = map(sides, (shape_of(edit), shape))
            raise PalimpsestError(
                f"{name}: the patch was made for the shape {mine}, but it is {theirs} {where}; "
                "they are of different base models"
            )


def edited(base: Tensor, edits: Iterable[Edit]) -> Tensor:
    """Return the tensor that `edits` make of `base`, in the base's type and on its device."""
    start, shifts = base, []
    for edit in edits:
        if isinstance(edit, Replacement):
            start = edit.value.to(base.device)
        else:
            shifts.append(edit.shift(base))
    if not shifts:
        return start.to(base.dtype)
    return (start.float() + sum(shifts[1:], shifts[0])).to(base.dtype)


# --- products ---


def energy(edits: Iterable[Edit]) -> float:
    """Return ‖ΣΔ‖² of the edits of one parameter; NaN for one that is replaced whole."""
    edits = tuple(edits)
    return max(inner(edits, edits), 0.0)


def inner(ours: Iterable[Edit], theirs: Iterable[Edit]) -> float:
    """Return ⟨ΣΔ, ΣΔ'⟩ of one parameter's edits; NaN if a replacement, without Δ, is among them.

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
    """Return (rank, in) upᵀ·Δ."""
    left = up.double().T
    if isinstance(edit, LowRank):
        return (left @ edit.up.double()) @ edit.down.double()
    if isinstance(edit, Rows):
        left = left[:, edit.index]
    return left @ _matrix(edit)


def _rows(edit: Edit, index: Tensor) -> Tensor:
    """Return (k, in) those rows of Δ."""
    if isinstance(edit, LowRank):
        return edit.up[index].double() @ edit.down.double()
    if isinstance(edit, Rows):
        return (index[:, None] == edit.index).double() @ _matrix(edit)
    return _matrix(edit)[index]


def _matrix(edit: Edit) -> Tensor:
    """Return (rows, in) Δ of one that stores it, of `Rows` its own rows alone."""
    assert isinstance(edit, (Dense, Rows))
    return edit.delta.reshape(len(edit.delta), -1).double()
