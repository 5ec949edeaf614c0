"""What every model has in common: parameters by canonical name, and patches laid over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch

from palimpsest.core import hashes
from palimpsest.core.brief import brief, count, some
from palimpsest.core.errors import NoDifferenceError, PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.models.factors import apart, edit, shift
from palimpsest.models.fingerprints import Fingerprints
from palimpsest.patch import Patch, precision
from palimpsest.patch.edits import LowRank, edited, refuse_misfits
from palimpsest.patch.hooks import Hook
from palimpsest.patch.patch import same_base, together
from palimpsest.patch.tensor_files import checked_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(eq=False)
class AppliedPatch:
    """A patch that is applied to a model."""

    patch: Patch
    """All that was put on at once."""
    below: dict[str, Tensor]
    """Parameter → its tensor without this patch and those that were put on later."""


class Editable:
    """Modules whose parameters have canonical names, so that patches and views act on them.

    A model and its views belong to one thread: a patch on one of them is on all.
    """

    name: str
    stored: Mapping[str, torch.dtype] = {}
    """In what precision its networks lie in their files, where that is known."""
    left_out: Sequence[str] = ()
    """Parts of its folder that were not loaded, such as a safety checker."""
    loaded: Mapping[str, Any] | None = None
    """What `load_model` was told; None of a model that was made otherwise."""

    def _adopt(self, parts: Mapping[str, nn.Module]) -> None:
        """Take modules in, frozen, by the first part of their parameters' canonical names."""
        self._parts = dict(parts)
        for module in parts.values():
            module.eval().requires_grad_(False)
        self._overlay: Callable[[], Mapping[str, Tensor]] | None = None
        self._pristine: dict[str, Tensor] = {}
        self._applied: list[AppliedPatch] = []  # in the order in which they were put on
        self._fingerprints: dict[str, str] = {}
        self._prints = Fingerprints()
        self._parameters: dict[str, Tensor] = {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }

    def read_from(self, files: hashes.Files) -> None:
        """Let fingerprints be kept as long as the files that its weights were read of stay."""
        self._prints = Fingerprints(files)

    def __repr__(self) -> str:
        entries = count(sum(p.numel() for p in self._parameters.values()))
        dtype = str(self.dtype).removeprefix("torch.")
        sort = "a view" if self._overlay is not None else some(len(self._applied), "patch")
        return brief(self, repr(self.name), entries, dtype, self.device, sort)

    # --- what it is ---

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self._first.dtype

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        """Its modules, by the first part of their parameters' canonical names."""
        return dict(self._parts)

    @property
    def applied(self) -> list[Patch]:
        """The patches that it is under, in the order in which they were put on."""
        return [each.patch for each in self._applied]

    def component(self, name: str) -> nn.Module:
        """Return one of its networks, such as `unet`."""
        return self._parts[name]

    @property
    def _first(self) -> Tensor:
        """The first parameter of all."""
        return next(iter(self._parameters.values()))

    def fingerprint(self, name: str) -> str:
        """Fingerprint of the unedited tensor of a parameter."""
        self._known(name)
        if name not in self._fingerprints:
            tensor = self._pristine.get(name, self._parameters[name].data)
            self._fingerprints[name] = self._prints.of(name, tensor)
        return self._fingerprints[name]

    def _known(self, name: str) -> None:
        if name not in self._parameters:
            raise PalimpsestError(f"this model has no parameter {name!r}: another architecture?")

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the whole unedited model."""
        total = sum(each.numel() for each in self._parameters.values())
        with hashes.late(f"fingerprint of {self.name}, million weights", total // 10**6) as advance:
            lines, seen = [], 0
            for name, each in self._parameters.items():
                lines.append(f"{name} {self.fingerprint(name)}\n")
                before, seen = seen, seen + each.numel()
                advance(seen // 10**6 - before // 10**6)
        self._prints.keep()
        joined = "".join(lines)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    # --- edits ---

    def make_patch(
        self, deltas: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
    ) -> Patch:
        """Return a patch of shifts for this model, factored where `deltas` are (`factors`).

        Raises:
            PalimpsestError: a shift that is not dense or not real, or the edit changes nothing once
                applied.
        """
        for name, delta in deltas.items():
            checked_tensor(f"{name}: its shift", delta, read=False)
        edits = {name: (edit(parts),) for name, parts in apart(deltas).items()}
        return self.checked(Patch(edits, about=dict(about or {})))

    def checked(self, patch: Patch) -> Patch:
        """Return the patch with this model's fingerprints, refused if it changes nothing.

        In a model of less than float32 its `about` says in `rounding` what that takes of its norm
        (`precision.lost`).
        """
        base = {name: self.fingerprint(name) for name in patch.names}
        lost, about = self.lost(patch), {k: v for k, v in patch.about.items() if k != "rounding"}
        if lost is not None:
            about["rounding"] = {"dtype": precision.named(self.dtype), "lost": lost}
        if patch.hook is not None and patch.hook.acts():
            return replace(patch, base=base, about=about)
        for name, edits in patch.edits.items():
            if not torch.equal(edited(self._parameters[name].data, edits), self._parameters[name]):
                return replace(patch, base=base, about=about)
        swallowed = f"; {precision.told(lost, self.dtype)}" if lost == 1 else ""
        raise NoDifferenceError(
            "the edit changes no weight once applied; raise the learning rate or the steps"
            f"{swallowed}"
        )

    def lost(self, *patches: Patch) -> float | None:
        """Return the share of an edit's norm that rounding to this model's precision takes away.

        None in float32, in which the sum is taken, and of patches that shift nothing.
        """
        edits = together(patches).edits if patches else {}
        kinds = {name: self._parameters[name].dtype for name in edits if name in self._parameters}
        if not {torch.float16, torch.bfloat16} & {*kinds.values()}:
            return None
        found = precision.lost(edits, lambda name: self._parameters[name].data, kinds.__getitem__)
        return float(f"{found:.4g}") if found == found else None

    @contextmanager
    def patched(self, *patches: Patch | None) -> Iterator[Self]:
        """Yield the model under patches; afterwards its weights are the same tensors as before.

        Blocks may end in any order: what is left is the model under the patches still applied.

        Raises:
            PalimpsestError: a patch of another base model or without sound numbers, weights that
                overflow under it, or a hook that cannot be applied.
        """
        real = [patch for patch in patches if patch is not None]
        if not real:
            yield self
            return
        joint = together(real)
        self.accepts(joint)
        below = {name: self._parameters[name].data for name in joint.edits}
        above = {
            name: checked_tensor(f"{name}: under the patch it", edited(below[name], edits))
            for name, edits in joint.edits.items()
        }
        applied = AppliedPatch(joint, below)
        try:
            self._applied.append(applied)
            self._pristine.update({n: t for n, t in below.items() if n not in self._pristine})
            for name, tensor in above.items():
                self._parameters[name].data = tensor
            del above
            with self._hooked(joint.hook) if joint.hook else nullcontext():
                yield self
        finally:
            self._take_off(applied)

    def _take_off(self, applied: AppliedPatch) -> None:
        """Leave a patch; those put on after it are laid over what was below it."""
        later = self._applied[self._applied.index(applied) + 1 :]
        self._applied.remove(applied)
        for name, below in applied.below.items():
            tensor = below
            for other in (each for each in later if name in each.patch.edits):
                other.below[name], tensor = tensor, edited(tensor, other.patch.edits[name])
            self._parameters[name].data = tensor
            if not any(name in other.patch.edits for other in self._applied):
                del self._pristine[name]

    def _hooked(self, hook: Hook) -> AbstractContextManager[None]:
        """Honour a hook; a model that samples nothing cannot."""
        raise PalimpsestError(
            f"{self.name!r} samples nothing, so it cannot take a sampling hook ({hook.kind})"
        )

    def accepts(self, patch: Patch) -> None:
        """Refuse a patch that was made for another base model, or that no weight can be made of.

        Raises:
            PalimpsestError: saying what is wrong with it.
        """
        beside = {n: (LowRank(*pair),) for n, pair in (patch.hook or Hook()).adapters.items()}
        for name, edits in (*patch.edits.items(), *beside.items()):
            self._known(name)
            refuse_misfits(name, edits, self._parameters[name].shape, f"in {self.name!r}")
        patch.check()
        for name, print_ in patch.base.items():
            if not same_base(self.fingerprint(name), print_):
                raise PalimpsestError(
                    f"the patch was made for another base model than {self.name!r} ({name} "
                    "differs); load the model that it was made for"
                )

    # --- views ---

    def student(self, deltas: Mapping[str, Tensor]) -> Self:
        """Return a view of this model that computes with weights W + Δ; this one stays as it is.

        `deltas` are leaf tensors under training, Δ by the weight's name or its factors (`factors`);
        both share every other weight, so a frozen teacher and its student take the memory of one
        model and one edit.
        """
        moved = apart(deltas)  # rounded one by one: all in float32 would be as large again

        return self.overlaid(lambda: {n: self._shifted(n, parts) for n, parts in moved.items()})

    def overlaid(self, overlay: Callable[[], Mapping[str, Tensor]]) -> Self:
        """Return a view whose named weights are computed by `overlay` at every call.

        Over a view, the overlay below goes on to compute what this one does not name.
        """
        view, below = copy(self), self._overlay
        view._overlay = overlay if below is None else lambda: {**below(), **overlay()}
        return view

    @no_grad
    def still(self) -> Self:
        """Return a view that computes with this one's weights as they are now, and trains none."""
        fixed = {} if self._overlay is None else dict(self._overlay())
        view = copy(self)
        view._overlay = lambda: fixed
        return view

    def weight(self, name: str) -> Tensor:
        """Return the weight that this model, or view of one, computes with."""
        own = self._parameters[name].data
        return own if self._overlay is None else self._overlay().get(name, own)

    def _shifted(self, name: str, parts: tuple[Tensor, ...]) -> Tensor:
        own = self._parameters[name].detach()
        return (own.float() + shift(parts, own.shape)).to(own.dtype)

    def _call(self, part: str, *args: Any, **kwargs: Any) -> Any:
        module = self._parts[part]
        if self._overlay is None:
            return module(*args, **kwargs)
        prefix = part + "."
        weights = {
            name.removeprefix(prefix): tensor.to(self._parameters[name])
            for name, tensor in self._overlay().items()
            if name.startswith(prefix)
        }
        # no weight is tied to another, and looking for ties would take as long as the call
        return torch.func.functional_call(module, weights, args, kwargs, tie_weights=False)
