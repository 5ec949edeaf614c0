"""A model's parameters by named groups, and what a group is trained by."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Self

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup
from palimpsest.models.factors import parameters, ranks, untrained
from palimpsest.models.sparing import Sparing

if TYPE_CHECKING:
    from torch import Tensor


class Grouped(Sparing):
    """A model whose parameters are trained by groups."""

    _factored: tuple[int, torch.Generator] | None = None
    """Rank and draws of the factors that its groups are trained by; None where they are shifted."""

    def parameters(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Return the named group's parameters by canonical name.

        Raises:
            PalimpsestError: the group is unknown, or selects nothing in this model.
        """
        groups = self.sites.groups
        if group not in groups:
            raise PalimpsestError(f"no parameter group {group!r}; there are {', '.join(groups)}")
        chosen = {name: p for name, p in self._parameters.items() if groups[group](name)}
        if not chosen:
            raise PalimpsestError(f"the group {group!r} selects no parameter of this model")
        self._stay(chosen)
        return chosen

    def shifts(self, group: ParameterGroup, of: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return leaf tensors that shift nothing yet, to train a group's parameters by, in float32.

        Zeros by the parameter's name; of `factored` two factors for each that can have them.

        Args:
            group: whose parameters.
            of: the names of those of them that are trained; all, when left out.
        """
        own = {n: p for n, p in self.parameters(group).items() if of is None or n in of}
        if self._factored is None:
            zeros = partial(torch.zeros_like, dtype=torch.float32, requires_grad=True)
            return {name: zeros(p) for name, p in own.items()}
        rank, g = self._factored
        each = ranks(own, rank).items()
        return parameters({n: untrained({n: own[n]}, r, g)[n] for n, r in each})

    def factored(self, rank: int, g: torch.Generator) -> Self:
        """Return a view whose `shifts` are factors of that rank, begun by draws of `g`."""
        view = copy(self)
        view._factored = rank, g
        return view

    def sizes(self, group: ParameterGroup) -> dict[str, int]:
        """Return the number of entries of each of a group's parameters."""
        return {name: p.numel() for name, p in self.parameters(group).items()}

    def matrices(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Return the weight matrices of a group, (out, in) each."""
        return {name: p for name, p in self.parameters(group).items() if p.ndim == 2}
