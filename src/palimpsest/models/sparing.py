"""How much memory a model computes with."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Self

import torch

from palimpsest.core.kinds import Memory
from palimpsest.models.editable import Editable
from palimpsest.models.protocol import Sites
from palimpsest.models.recompute import row_by_row

if TYPE_CHECKING:
    from torch import Tensor


class Sparing(Editable):
    """A model that can do with little memory: nothing that it computes depends on it."""

    sites: Sites
    memory: Memory = "normal"
    """How much memory it computes with; `use_memory` says it."""
    _staying: frozenset[str] = frozenset()
    """Networks whose parameters someone holds."""

    def use_memory(self, memory: Memory) -> None:
        """Say with how much memory it computes from here on; nothing it computes depends on it.

        With `low`, predictions that are differentiated are computed latent by latent and block by
        block, again in the backward pass, so that one block of one latent is kept at a time; text
        encoders wait on the CPU, unless a method trains them; pictures are encoded and decoded one
        at a time, and beyond the size of the autoencoder's tiles in tiles, which changes pixels.
        """
        self.memory = memory

    @property
    def resting(self) -> torch.device:
        """Where a method lays what it does not compute with just now: with low memory the CPU."""
        return torch.device("cpu") if self.memory == "low" else self.device

    @property
    def tiled(self) -> bool:
        """Whether pictures are decoded in tiles, whose seams change their pixels."""
        return False

    def at_once(self) -> Self:
        """Return a view that keeps what it computes, for those who look inside."""
        view = copy(self)
        view.memory = "normal"
        return view

    def _stay(self, names: Any) -> None:
        """Let networks stay on the device from here on, by the names of their parameters."""
        self._staying |= {name.partition(".")[0] for name in names}
        for part in self._staying - {self.sites.denoiser}:
            self._parts[part].to(self.device)

    def _in_rows(self, call: Callable[..., Tensor], *inputs: Any, kept: bool) -> Tensor:
        """Return `call(*inputs)`; with low memory row by row where there may be a gradient.

        Args:
            call: maps n rows of each input to n rows.
            inputs: of n rows each.
            kept: whether the insides of a single row may be computed again at any later time.
        """
        if self.memory == "normal" or not torch.is_grad_enabled():
            return call(*inputs)
        return row_by_row(call, self.sites.blocks, *inputs, kept=kept)

    def _call(self, part: str, *args: Any, **kwargs: Any) -> Any:
        """Call a network; with low memory, text encoders that nobody trains leave the device."""
        from torch.utils._pytree import tree_leaves

        if part == self.sites.denoiser or self.device.type in ("cpu", "meta"):
            return super()._call(part, *args, **kwargs)
        self._parts[part].to(self.device)  # where it may have left
        out = super()._call(part, *args, **kwargs)
        trained = any(t.requires_grad for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        if self.memory == "low" and part not in self._staying and not trained:
            self._parts[part].to("cpu")
        return out
