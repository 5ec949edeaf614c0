"""The relearning curve, measured the same way by every recovery that trains."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.core.concepts import Concept
from palimpsest.methods import Context
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import Trace

SEED = 500
"""First seed of the pictures a curve is measured on; no recovery trains on them."""


@dataclass(frozen=True)
class Relearning:
    """Counts how often the judge says the concept, at chosen steps of an optimisation."""

    model: Diffusion
    concept: Concept
    context: Context
    at: tuple[int, ...]
    """Steps at which to measure."""
    pictures: int
    """Pictures judged at each."""
    per_step: int = 1
    """Gradient evaluations a step takes."""

    def watch(self, trace: Trace, cond: Conditioning | None = None) -> None:
        """Measure, if this step is one of those chosen; for `optimise`.

        Args:
            trace: where the optimisation stands.
            cond: what is asked in place of the concept's own words, one for each prompt.
        """
        if trace.step not in self.at:
            return
        prompts = self.concept.prompts(self.pictures, seed=SEED)
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
