"""The relearning curve, measured the same way by every recovery that trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Context
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import Trace

SEED = 500
"""First seed of the pictures that are judged; no recovery trains on them."""


# --- what every curve is made of ---


def own_prompts(concept: Concept, n: int) -> list[Prompt]:
    """Return the `n` prompts that are judged: the concept's own, in turn."""
    return concept.prompts(n, seed=SEED)


def recognised(images: Tensor, concept: Concept, context: Context) -> list[bool]:
    """Return, for each picture, whether the judge says the concept.

    Args:
        images: (n, 3, height, width) in [0, 1].
        concept: what to look for.
        context: has the judge.
    """
    return context.needs_judge().read(images).says(concept.kind, concept.name)


def point(step: int, evaluations: int, says: Iterable[bool | int]) -> CurvePoint:
    """Return a point of a curve from what the judge said of each picture."""
    each = tuple(map(bool, says))
    return CurvePoint(step, evaluations, rate(each), each)


# --- the judge alone, at chosen steps ---


@dataclass(frozen=True)
class Measured:
    """When and on how many pictures a relearning curve is measured."""

    at: tuple[int, ...] = (0, 10, 50, 100, 200, 500)
    """Steps at which to measure; none measures nothing and needs no judge."""
    pictures: int = 48
    """Pictures judged each time."""

    def __post_init__(self) -> None:
        at_least(self, pictures=1)


@dataclass(frozen=True)
class Relearning:
    """Counts how often the judge says the concept, at chosen steps of an optimisation."""

    model: Diffusion
    concept: Concept
    context: Context
    settings: Measured
    """When to measure, and on how many pictures."""
    per_step: int = 1
    """Gradient evaluations a step takes."""

    def watch(self, trace: Trace, cond: Conditioning | None = None) -> None:
        """Measure, if this step is one of those chosen; for `optimise`.

        Args:
            trace: where the optimisation stands.
            cond: what is asked in place of the concept's own words, one for each prompt.
        """
        if trace.step not in self.settings.at:
            return
        prompts = own_prompts(self.concept, self.settings.pictures)
        label = f"pictures at step {trace.step}"
        images = self.model.generate(prompts, self.context, label, cond)
        says = recognised(images, self.concept, self.context)
        trace.notes.setdefault("curve", []).append([trace.step, list(map(int, says))])

    def points(self, trace: Trace) -> tuple[CurvePoint, ...]:
        """Return the curve as measured."""
        rows = trace.notes.get("curve", [])
        return tuple(point(step, step * self.per_step, says) for step, says in rows)
