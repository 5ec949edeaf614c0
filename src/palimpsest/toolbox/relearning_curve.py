"""The relearning curve, measured the same way by every recovery that trains."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.methods import Context
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import Trace

SEED = 500
"""First seed of the pictures a curve is measured on; no recovery trains on them."""


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
        prompts = self.concept.prompts(self.settings.pictures, seed=SEED)
        label = f"pictures at step {trace.step}"
        images = self.model.generate(prompts, self.context, label, cond)
        says = self.context.needs_judge().read(images).says(self.concept.kind, self.concept.name)
        trace.notes.setdefault("curve", []).append([trace.step, [int(s) for s in says]])

    def points(self, trace: Trace) -> tuple[CurvePoint, ...]:
        """The curve as measured."""
        return tuple(
            CurvePoint(step, step * self.per_step, rate(map(bool, says)), tuple(map(bool, says)))
            for step, says in trace.notes.get("curve", [])
        )
