"""Restoration: what was put in as a shift of weights is taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Recovery, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Edit, LowRank, Replacement
from palimpsest.toolbox.optimise import Trace
from palimpsest.toolbox.relearning_curve import Measured, Relearning


@dataclass(frozen=True)
class Restoration(Recovery):
    """Take the erasing patch out: the edit whose sum with it is nothing.

    Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947:
    with θ = θ₀ + Σ Δ_k, concept k is restored by leaving Δ_k out of the sum. Whoever has the
    patch needs no picture, no gradient and no search. It bounds all other recoveries from above.

    Traps: only shifts of weights can be taken out, no sampling hook and no tensor replaced whole.
    """

    measure: Measured = Measured((0, 1))
    """When to judge: 0 is before, 1 after."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {"measure": Measured((0, 1), pictures=36)},
    }
    subjects: ClassVar[tuple[str, ...]] = ("erased",)
    """Gold is whole tensors, and the unedited model has no patch: there is nothing to take out."""
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("zhao2024separable")

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Take `erased` out of `model`.

        Raises:
            PalimpsestError: nothing was erased, or the erasure is no shift of weights.
        """
        erased = invertible(erased)
        edits = {name: opposite(model, name, edits) for name, edits in erased.edits.items()}
        patch = model.checked(Patch(edits))  # step: Δ_k is left out of the sum
        curve = Relearning(model, concept, context, self.measure, per_step=0)
        trace = Trace()
        for patches in ((erased,), (erased, patch)):
            with model.patched(*patches):
                curve.watch(trace)
            trace.losses.append(0.0)  # one step, in which nothing is minimised
        return Result(patch, curve.points(trace))


def invertible(erased: Patch | None) -> Patch:
    """Return the patch; refuse one that no shift of weights undoes."""
    if erased is None:
        raise PalimpsestError(
            "the unedited model has no patch that could be taken out; restore an erased model"
        )
    if erased.hook is not None:
        raise PalimpsestError(
            f"the erasure has a sampling hook ({erased.hook.kind}), which no shift of weights "
            "takes out; leave its patch off the model instead"
        )
    for name, edits in erased.edits.items():
        if any(isinstance(edit, Replacement) for edit in edits):
            raise PalimpsestError(
                f"the erasure replaces {name} whole, as a gold model does, so there is no shift to "
                "take out; leave its patch off the model instead"
            )
    return erased


def opposite(model: Diffusion, name: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Return −ΣΔ of one parameter, so that the two together are zero to the last bit.

    A product of factors is multiplied out: up·down − up·down in one matrix product would leave its
    rounding behind.
    """
    if any(isinstance(edit, LowRank) for edit in edits):
        weight = model.weight(name)
        shifts = [edit.shift(weight) for edit in edits if not isinstance(edit, Replacement)]
        return (Dense(-sum(shifts[1:], shifts[0]).cpu()),)
    return tuple(edit.scaled(-1.0) for edit in edits if not isinstance(edit, Replacement))
