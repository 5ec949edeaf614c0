"""What erasers share that train a shift of a group of weights: whole, or as factors."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import ranks
from palimpsest.patch.algebra import check_rank, truncated

if TYPE_CHECKING:
    from torch import Tensor

RANK = 4
"""Of factors, unless someone says otherwise; MemoRa's LoRAs and Diffusers' scripts have it, too."""


@dataclass(frozen=True)
class Shifting(Eraser):
    """An eraser that trains the shift of the weights of the group `train` and nothing else."""

    _: KW_ONLY
    as_: Literal["dense", "lora"] = "dense"
    """What is trained: the shift of every entry, `dense` as published, or the two factors of a
    shift of linear layers and convolutions, `lora` (Hu et al. 2022, not published), with less
    memory and a patch that is a LoRA as it is."""
    rank: int | None = None
    """Rank of `lora`, 4 when left out. A `dense` shift is cut to this rank by singular values, for
    a light file; when left out, it is kept whole."""

    least: ClassVar = dict(rank=1)

    def make(self, model: Any, task: Task, context: Context) -> Result:
        """Make the patch by `erase`: of factors, or of a whole shift that is cut to its rank."""
        if self.as_ == "lora":
            factored = model.factored(self.rank or RANK, context.stream("factors"))
            return self.erase(factored, task, context)
        result = self.erase(model, task, context)
        if self.rank is None or result.patch is None:
            return result
        light, residual = truncated(result.patch, self.rank, smaller=True)
        about = {**result.patch.about, "residual": residual}
        return replace(result, patch=model.checked(replace(light, about=about)))

    def refuse(self, model: Any, task: Task) -> None:
        """Refuse also a rank that no trained tensor could be cut to, or be made smaller by.

        Raises:
            PalimpsestError: naming what is lacking, or the rank.
        """
        super().refuse(model, task)
        if self.rank is not None:
            shapes = {name: W.shape for name, W in self.weights(model).items()}
            check_rank(shapes, self.rank, smaller=True)

    def weights(self, model: Diffusion) -> dict[str, Tensor]:
        """Return the weights that are shifted: those of the group `train`."""
        return model.parameters(self.train)  # type: ignore[attr-defined]

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries that are trained, by parameter: of its shift, or of its factors."""
        own = self.weights(model)
        if self.as_ == "dense":
            return {name: W.numel() for name, W in own.items()}
        found = ranks(own, self.rank or RANK)
        return {name: r * (len(own[name]) + own[name][0].numel()) for name, r in found.items()}

    def changes(self, model: Diffusion) -> dict[str, int]:
        """Return the entries of the weights that its patch changes, by parameter."""
        return {name: self.weights(model)[name].numel() for name in self.moves(model)}
