"""The edit as a value: small, saved, added up, taken out, exported.

A patch maps canonical parameter names (`unet.…`, `text_encoder.…`) to edits. Applied to a base
tensor W, the edits of one name give  W' = round(R + ΣΔ),  where R is the replacement if there is
one and W otherwise, and the sum is taken in float32. Nothing in it depends on the order in which
patches were added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.files import whole
from palimpsest.types import PalimpsestError, WriteError

FORMAT = 1
"""Version of the file format; a file of a newer one is refused."""


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
    """The shape it was made for: of `LowRank` as a matrix, of `Rows` with the fewest rows."""
    if isinstance(edit, LowRank):
        return edit.up.shape[0], edit.down.shape[1]
    if isinstance(edit, Rows):
        return max(edit.index.tolist(), default=-1) + 1, *edit.delta.shape[1:]
    return tuple(edit.value.shape if isinstance(edit, Replacement) else edit.delta.shape)


def fits(edit: Edit, shape: Sequence[int]) -> bool:
    """Whether it can be laid over a tensor of that shape."""
    own = shape_of(edit)
    if isinstance(edit, (LowRank, Rows)):
        rows = own[0] == shape[0] if isinstance(edit, LowRank) else own[0] <= shape[0]
        return rows and prod(own[1:]) == prod(shape[1:])
    return own == tuple(shape)


def refuse_misfits(name: str, edits: Iterable[Edit], shape: Sequence[int], where: str) -> None:
    """Refuse edits of a parameter that were made for another shape than it has `where`.

    Raises:
        PalimpsestError: naming the parameter and both shapes.
    """
    for edit in edits:
        if not fits(edit, shape):
            mine, theirs = ("×".join(map(str, s)) for s in (shape_of(edit), shape))
            raise PalimpsestError(
                f"{name}: the patch was made for the shape {mine}, but it is {theirs} {where}; "
                "they are of different base models"
            )


def edited(base: Tensor, edits: Iterable[Edit]) -> Tensor:
    """The tensor that `edits` make of `base`, in the base's type and on its device."""
    start, shifts = base, []
    for edit in edits:
        if isinstance(edit, Replacement):
            start = edit.value.to(base.device)
        else:
            shifts.append(edit.shift(base))
    if not shifts:
        return start.to(base.dtype)
    return (start.float() + sum(shifts[1:], shifts[0])).to(base.dtype)


@dataclass(frozen=True)
class Patch:
    """An edit of a model, with what made it and what it was made for."""

    edits: Mapping[str, tuple[Edit, ...]]
    """Canonical parameter name → its edits, at most one of each kind."""
    base: Mapping[str, str] = field(default_factory=dict)
    """Parameter name → fingerprint of the base model's tensor, for every tensor it touches."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Method, arguments, concepts, seed, versions: JSON-able."""

    @classmethod
    def dense(cls, deltas: Mapping[str, Tensor], **rest: Any) -> Patch:
        """A patch of dense shifts, kept in float32 on the CPU."""
        return cls({n: (Dense(d.detach().float().cpu()),) for n, d in deltas.items()}, **rest)

    # --- algebra ---

    def scaled(self, factor: float) -> Patch:
        """Every shift times `factor`.

        Raises:
            PalimpsestError: the patch replaces whole tensors, which have no scale.
        """
        for name, edits in self.edits.items():
            if any(isinstance(edit, Replacement) for edit in edits):
                raise PalimpsestError(f"{name} is replaced whole: a replacement cannot be scaled")
        edits = {n: tuple(e.scaled(factor) for e in es) for n, es in self.edits.items()}  # type: ignore[union-attr]
        return replace(self, edits=edits, about={"scaled": factor, "of": dict(self.about)})

    def __add__(self, other: Patch) -> Patch:
        """Both edits at once; the order does not matter."""
        edits = {
            name: _merge(es, other.edits.get(name, ()), name) for name, es in self.edits.items()
        }
        edits |= {name: es for name, es in other.edits.items() if name not in edits}
        return Patch(edits, self._joint_base(other), {"sum": [dict(self.about), dict(other.about)]})

    def __sub__(self, other: Patch) -> Patch:
        """Take the shifts of `other` out again."""
        return self + other.scaled(-1.0)

    def _joint_base(self, other: Patch) -> dict[str, str]:
        for name in self.base.keys() & other.base.keys():
            if self.base[name] != other.base[name]:
                raise PalimpsestError(
                    f"the two patches were made for different base models ({name} differs)"
                )
        return {**self.base, **other.base}

    # --- figures ---

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of the model it touches."""
        return tuple(dict.fromkeys(name.split(".", 1)[0] for name in self.edits))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def norm(self) -> float:
        """Frobenius norm of all shifts together; a replacement has none and counts as NaN."""
        total = 0.0
        for edits in self.edits.values():
            for edit in edits:
                if isinstance(edit, Replacement):
                    return float("nan")
                tensor = edit.up @ edit.down if isinstance(edit, LowRank) else edit.delta
                total += float(tensor.double().square().sum())
        return total**0.5

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors under the names they have in a file: `parameter|kind.field`."""
        flat = {}
        for name, edits in self.edits.items():
            for edit in edits:
                kind = type(edit).__name__.lower()
                for key, tensor in vars(edit).items():
                    flat[f"{name}|{kind}.{key}"] = tensor.detach().cpu().contiguous()
        return flat

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of its tensors."""
        return tensors_digest(self.tensors())

    # --- files ---

    def save(self, path: Path, half: bool = False) -> float:
        """Write one safetensors file, first under a temporary name.

        Args:
            path: where to.
            half: store shifts in half precision; they are then no longer exact.

        Returns:
            The largest absolute change that rounding to half precision made (0 without `half`).
        """
        tensors, residual = self.tensors(), 0.0
        if half:
            small = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
            changes = [
                float((small[n].float() - t).abs().max()) for n, t in tensors.items() if t.numel()
            ]
            tensors, residual = small, max(changes, default=0.0)
        manifest = {
            "format": FORMAT,
            "digest": tensors_digest(tensors),
            "base": dict(self.base),
            "about": dict(self.about),
        }
        with whole(path) as part:
            try:
                save_file(tensors, part, metadata={"palimpsest": json.dumps(manifest)})
            except SafetensorError as error:
                raise WriteError(
                    f"{path}: cannot be written; is the disk full? ({error})"
                ) from error
        return residual

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Read a patch and check that it is whole.

        Raises:
            PalimpsestError: no such file, not a patch, of a newer format, cut short or altered.
        """
        manifest, tensors = _read(path)
        if manifest.get("format", 0) > FORMAT:
            raise PalimpsestError(
                f"{path}: written by a newer Palimpsest (format {manifest['format']}, this one "
                f"reads up to {FORMAT}); update Palimpsest"
            )
        if tensors_digest(tensors) != manifest.get("digest"):
            raise PalimpsestError(f"{path}: altered since it was written; make the patch again")
        fields: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            name, _, rest = key.partition("|")
            kind, _, part = rest.partition(".")
            fields.setdefault(name, {}).setdefault(kind, {})[part] = tensor
        try:
            edits = {
                name: tuple(KINDS[kind](**parts) for kind, parts in kinds.items())
                for name, kinds in fields.items()
            }
            return cls(edits, manifest["base"], manifest["about"])
        except (KeyError, TypeError) as error:
            raise PalimpsestError(f"{path}: not a whole patch file (without {error})") from error


def _merge(ours: tuple[Edit, ...], theirs: tuple[Edit, ...], name: str) -> tuple[Edit, ...]:
    merged: dict[type, Edit] = {type(edit): edit for edit in ours}
    if ours and theirs:  # the most telling shape is that of a whole tensor, the least of a few rows
        telling = (Rows, LowRank, Dense, Replacement)
        most = max((*ours, *theirs), key=lambda e: (telling.index(type(e)), shape_of(e)))
        refuse_misfits(name, (*ours, *theirs), shape_of(most), "in the other patch")
    for edit in theirs:
        mine = merged.get(type(edit))
        if mine is None:
            merged[type(edit)] = edit
        elif isinstance(edit, Replacement):
            raise PalimpsestError(f"{name} is replaced whole by both patches; they cannot be added")
        else:
            merged[type(edit)] = mine.plus(edit)  # type: ignore[union-attr]
    return tuple(merged.values())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise PalimpsestError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "palimpsest" not in metadata:
                raise PalimpsestError(f"{path}: a safetensors file, but not a Palimpsest patch")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(metadata["palimpsest"]), tensors
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise PalimpsestError(f"{path}: not a whole patch file ({error})") from error


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def fingerprint(tensor: Tensor) -> str:
    """A digest of a base tensor rounded to half precision: an fp16 copy has the same."""
    return tensors_digest({"": tensor.detach().half()})[:16]
