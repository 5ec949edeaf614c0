"""The edit as a value: small, saved, added up, taken out, exported.

A patch maps canonical parameter names (`unet.…`, `text_encoder.…`) to edits. Applied to a base
tensor W, the edits of one name give  W' = round(R + ΣΔ),  where R is the replacement if there is
one and W otherwise, and the sum is taken in float32. Nothing in it depends on the order in which
patches were added. What no shift of weights can say, a patch carries as a sampling hook (hooks.py);
such a patch can be laid over others, but the algebra refuses it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.brief import brief, size, some
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object
from palimpsest.patch.edits import (
    KINDS,
    Dense,
    Edit,
    LowRank,
    Replacement,
    Rows,
    energy,
    refuse_misfits,
    refuse_unsound,
    shape_of,
)
from palimpsest.patch.hooks import Hook, rebuilt
from palimpsest.patch.tensor_files import (
    checked_tensor,
    read_metadata,
    read_tensors,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
"""Version of the file format; a file of a newer one is refused. Files without a hook say 1."""
HOOK = "hook|"
"""Before the names of a hook's tensors in a file."""


@dataclass(frozen=True)
class Patch:
    """An edit of a model, with what made it and what it was made for.

    Raises:
        PalimpsestError: what is no edit, or two of one kind for a parameter; tensors that are not
            dense, real, or of shapes that go together. Their numbers are read by `check`.
    """

    edits: Mapping[str, tuple[Edit, ...]]
    """Canonical parameter name → its edits, at most one of each kind."""
    base: Mapping[str, str] = field(default_factory=dict)
    """Parameter name → fingerprint of the base model's tensor, for every tensor it touches."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Method, arguments, concepts, seed, versions: JSON-able."""
    hook: Hook | None = None
    """What it changes at sampling beside the weights."""

    def __post_init__(self) -> None:
        self.check(read=False)

    def __repr__(self) -> str:
        method, names = self.about.get("method"), self.about.get("concepts", ())
        hook = self.hook and self.hook.kind
        told = ", ".join(map(str, names)) if isinstance(names, list | tuple) else ""
        return brief(self, method, told, some(len(self.edits), "tensor"), hook, size(self.nbytes))

    def check(self, read: bool = True) -> None:
        """Refuse what no weight can be made of.

        Args:
            read: look at the numbers, too, and not at types and shapes alone.

        Raises:
            PalimpsestError: naming the parameter, or the hook, and what is wrong with it.
        """
        for what in (self.edits, self.base, self.about):
            if not isinstance(what, Mapping) or not all(isinstance(key, str) for key in what):
                raise PalimpsestError("a patch's edits, base and about go by names, and these not")
        for name, edits in self.edits.items():
            refuse_unsound(name, edits, read)
        if not isinstance(self.hook, Hook | None):
            raise PalimpsestError(f"a patch's hook is a Hook, and no {type(self.hook).__name__}")
        if self.hook is not None and read:
            self.hook.check()

    @classmethod
    def dense(cls, deltas: Mapping[str, Tensor], **rest: Any) -> Patch:
        """Return a patch of dense shifts, kept in float32 on the CPU.

        Raises:
            PalimpsestError: a shift that is not dense or not real.
        """
        for name, delta in deltas.items():
            checked_tensor(f"{name}: its shift", delta, read=False)
        return cls({n: (Dense(d.detach().float().cpu()),) for n, d in deltas.items()}, **rest)

    # --- algebra ---

    def scaled(self, factor: float) -> Patch:
        """Return every shift times `factor`.

        Raises:
            PalimpsestError: the factor is not finite, or the patch has a hook or replaces whole
                tensors, which have no scale.
        """
        if not math.isfinite(factor):
            raise PalimpsestError(f"a patch cannot be scaled by {factor}; give a finite number")
        self.refuse_hook("scaled")
        for name, edits in self.edits.items():
            if any(isinstance(edit, Replacement) for edit in edits):
                raise PalimpsestError(f"{name} is replaced whole: a replacement cannot be scaled")
        edits = {n: tuple(e.scaled(factor) for e in es) for n, es in self.edits.items()}  # type: ignore[union-attr]
        return replace(self, edits=edits, about={"scaled": factor, "of": dict(self.about)})

    def __add__(self, other: Patch) -> Patch:
        """Both edits at once; the order does not matter.

        Raises:
            PalimpsestError: both replace a tensor whole, or one has a hook.
        """
        for patch in (self, other):
            patch.refuse_hook("added")
        edits = {
            name: _merge(es, other.edits.get(name, ()), name) for name, es in self.edits.items()
        }
        edits |= {name: es for name, es in other.edits.items() if name not in edits}
        return Patch(edits, self._joint_base(other), {"sum": [dict(self.about), dict(other.about)]})

    def __sub__(self, other: Patch) -> Patch:
        """Take the shifts of `other` out again."""
        for patch in (self, other):
            patch.refuse_hook("subtracted")
        return self + other.scaled(-1.0)

    def refuse_hook(self, verb: str) -> None:
        """Refuse what can be done with shifts of weights alone."""
        if self.hook is not None:
            raise PalimpsestError(
                f"a patch with a sampling hook ({self.hook.kind}) cannot be {verb}: it changes "
                "what sampling does, not only weights; lay it over the model as it is, "
                "model.patched(a, b)"
            )

    def _joint_base(self, other: Patch) -> dict[str, str]:
        for name in self.base.keys() & other.base.keys():
            if not same_base(self.base[name], other.base[name]):
                raise PalimpsestError(
                    f"the two patches were made for different base models ({name} differs)"
                )
        return {**self.base, **other.base}

    # --- figures ---

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter that it or its hook acts on."""
        return tuple(dict.fromkeys((*self.edits, *(self.hook.adapters if self.hook else ()))))

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of the model it touches."""
        return tuple(dict.fromkeys(name.split(".", 1)[0] for name in self.names))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def norm(self) -> float:
        """Frobenius norm of all shifts together; NaN if it replaces a tensor or has a hook."""
        return nan if self.hook else sqrt(sum(energy(edits) for edits in self.edits.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors under their names in a file: `parameter|kind.field`, `hook|name`."""
        found = {
            f"{name}|{type(edit).__name__.lower()}.{key}": tensor
            for name, edits in self.edits.items()
            for edit in edits
            for key, tensor in vars(edit).items()
        }
        if self.hook:
            found |= {HOOK + key: tensor for key, tensor in self.hook.tensors().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of its tensors, and over its hook."""
        return _digest(self.tensors(), self._hook_manifest())

    def _hook_manifest(self) -> dict[str, Any] | None:
        return self.hook and {"kind": self.hook.kind, "arguments": self.hook.arguments()}

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
        hook = self._hook_manifest()
        manifest = {
            "format": FORMAT if hook else 1,
            "digest": _digest(tensors, hook),
            "base": dict(self.base),
            "about": dict(self.about),
            **({"hook": hook} if hook else {}),
        }
        text = json.dumps(manifest, default=str)  # a setting may be a path
        write_tensors(path, tensors, {"palimpsest": text})
        return residual

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Read a patch and check that it is whole.

        Raises:
            PalimpsestError: no such file, not a patch, of a newer format, cut short or altered.
        """
        tensors, metadata = read_tensors(path)
        said = _manifest(path, metadata)
        if said is None:
            raise PalimpsestError(f"{path}: a safetensors file, but not a Palimpsest patch")
        try:
            if _digest(tensors, said["hook"]) != said["digest"]:
                raise PalimpsestError("altered since it was written; make the patch again")
            patch = _assembled(said, tensors)
            patch.check()
        except PalimpsestError as error:
            raise PalimpsestError(f"{path}: {error}") from None
        return patch


def _assembled(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    """Return the patch of a file's manifest and tensors; their numbers are not looked at."""
    own = {n.removeprefix(HOOK): t for n, t in tensors.items() if n.startswith(HOOK)}
    fields: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition("|")
        kind, _, part = rest.partition(".")
        if not key.startswith(HOOK):
            fields.setdefault(name, {}).setdefault(kind, {})[part] = tensor
    try:
        edits = {
            name: tuple(KINDS[kind](**parts) for kind, parts in kinds.items())
            for name, kinds in fields.items()
        }
    except (KeyError, TypeError) as error:
        raise PalimpsestError(f"not a whole patch file (without {error})") from error
    if own and not said["hook"]:
        raise PalimpsestError("holds tensors of a hook, but no hook")
    hook = rebuilt(said["hook"], own) if said["hook"] else None
    return Patch(edits, said["base"], said["about"], hook)


def together(patches: Sequence[Patch]) -> Patch:
    """Return all patches at once, as they lie on a model; of sampling hooks there may be one.

    Raises:
        PalimpsestError: two of them have a hook, or their edits do not add up.
    """
    if not patches:
        raise PalimpsestError("there is no patch to put together; give at least one")
    hooks = [patch.hook for patch in patches if patch.hook is not None]
    if len(hooks) > 1:
        raise PalimpsestError(
            f"two of the patches have a sampling hook ({hooks[0].kind}, {hooks[1].kind}), and a "
            "model can have one; leave one out"
        )
    plain = [replace(patch, hook=None) for patch in patches]
    joint = sum(plain[1:], plain[0])
    return replace(joint, hook=hooks[0]) if hooks else joint


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


def manifest(path: Path) -> dict[str, Any] | None:
    """Return what a patch file says of itself, without its tensors; None of other safetensors.

    Raises:
        PalimpsestError: it is no safetensors file, or was cut short.
    """
    return _manifest(path, read_metadata(path))


PLAIN: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "digest": (str,),
    "base": (dict,),
    "about": (dict,),
    "hook": (dict, type(None)),
}
"""What a manifest holds, and of which types; of an older file, no hook."""


def _manifest(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if "palimpsest" not in metadata:
        return None
    said = {"hook": None, **parse_object(metadata["palimpsest"], path)}
    wrong = [key for key, kinds in PLAIN.items() if type(said.get(key)) not in kinds]
    if not wrong and said["format"] > FORMAT:
        raise PalimpsestError(
            f"{path}: written by a newer Palimpsest (format {said['format']}, this one reads up to "
            f"{FORMAT}); update Palimpsest"
        )
    wrong = wrong or [name for name, print_ in said["base"].items() if type(print_) is not str]
    if wrong or not _written(said):
        why = f"its {wrong[0]} is none" if wrong else "it holds what is no text"
        raise PalimpsestError(f"{path}: not a whole patch file ({why})")
    return said


def _written(said: Mapping[str, Any]) -> bool:
    """Return whether all in a manifest can be written out again, in UTF-8."""
    try:
        return bool(json.dumps(said, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        return False


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _digest(tensors: Mapping[str, Tensor], hook: Mapping[str, Any] | None) -> str:
    """Return the digest of the tensors; with a hook, of its kind and arguments too."""
    digest = tensors_digest(tensors)
    if not hook:
        return digest
    return hashlib.sha256((digest + json.dumps(hook, sort_keys=True)).encode()).hexdigest()


def fingerprint(tensor: Tensor) -> str:
    """Return two digests of a base tensor, rounded to float16 and to bfloat16, joined by a dash.

    A copy in float16 shares the first with its origin, a copy in bfloat16 the second.
    """
    roundings = (tensor.detach().half(), tensor.detach().bfloat16())
    return "-".join(tensors_digest({"": rounded})[:16] for rounded in roundings)


def same_base(a: str, b: str) -> bool:
    """Return whether two fingerprints are of one tensor, in whatever precision each was held."""
    return not set(a.split("-")).isdisjoint(b.split("-"))
