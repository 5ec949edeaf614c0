"""The relearning curve, and tests of a model under training: the same prompts for every recovery.

All judge pictures of the concept's own prompts at chosen steps. `Relearning` asks the judge alone,
`Examiner` asks CLIP too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Context
from palimpsest.metrics import rates
from palimpsest.metrics.clusters import Cluster
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.metrics.revival import Score
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import Trace

if TYPE_CHECKING:
    from torch import Tensor

SEED = 500
"""First seed of the pictures that are judged; no recovery trains on them."""


# --- what every curve is made of ---


def own_prompts(concept: Concept, n: int) -> list[Prompt]:
    """Return the `n` prompts that are judged: the concept's own, in turn."""
    return concept.prompts(n, seed=SEED)


def recognised(images: Tensor, concept: Concept, context: Context) -> list[bool]:
    """Return, for each picture, whether the judge says the concept; nothing without a judge.

    Args:
        images: (n, 3, height, width) in [0, 1].
        concept: what to look for.
        context: has the judge.
    """
    judge = context.judge
    return [] if judge is None else judge.read(images).says(concept.kind, concept.name)


def judged(step: int, images: Tensor, concept: Concept, context: Context) -> tuple[CurvePoint, ...]:
    """Return the point of a curve at a step without gradients; none without a judge."""
    says = recognised(images, concept, context)
    asked = own_prompts(concept, len(says))
    return (point(step, 0, says, [p.cluster for p in asked]),) if says else ()


def point(
    step: int,
    evaluations: int,
    says: Iterable[bool | int],
    clusters: Sequence[Cluster] | None = None,
) -> CurvePoint:
    """Return a point of a curve from what the judge said of each picture.

    Args:
        step: of the optimisation.
        evaluations: gradient evaluations so far.
        says: one a picture.
        clusters: each one's prompt and noise; all independent if None.
    """
    each = tuple(map(bool, says))
    return CurvePoint(
        step, evaluations, rates.rate(each, clusters), each, _numbered(clusters or ())
    )


def _numbered(clusters: Sequence[Cluster]) -> tuple[tuple[int, int], ...]:
    """Return clusters with their prompts and their noises counted from 0."""
    texts, noises = (list(dict.fromkeys(c[side] for c in clusters)) for side in (0, 1))
    return tuple((texts.index(text), noises.index(noise)) for text, noise in clusters)


# --- the judge alone, at chosen steps ---


@dataclass(frozen=True)
class Measured(Settings):
    """When and on how many pictures a relearning curve is measured."""

    at: tuple[int, ...] = (0, 10, 50, 100, 200, 500)
    """Steps at which to measure; without a judge nothing is measured."""
    pictures: int = 48
    """Pictures judged each time."""
    least: ClassVar = dict(pictures=1)


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
        if trace.step not in self.settings.at or self.context.judge is None:
            return
        prompts = own_prompts(self.concept, self.settings.pictures)
        label = f"pictures at step {trace.step}"
        images = self.model.generate(prompts, self.context, label, cond)
        says = recognised(images, self.concept, self.context)
        trace.notes.setdefault("curve", []).append([trace.step, list(map(int, says))])

    def points(self, trace: Trace) -> tuple[CurvePoint, ...]:
        """Return the curve as measured."""
        rows = trace.notes.get("curve", [])
        clusters = [p.cluster for p in own_prompts(self.concept, self.settings.pictures)]
        return tuple(point(step, step * self.per_step, says, clusters) for step, says in rows)


# --- the judge and CLIP, whenever asked ---


Test = dict[str, Any]
"""One test of a model, JSON-able: `step`, and where the pictures were judged `says`, one 0 or 1 a
picture, `cosines`, one a picture, and `asked`, the prompt and the seed of each."""


@dataclass(frozen=True)
class Judged(Settings):
    """Who judges a model under fine-tuning, and on how many pictures."""

    pictures: int = 48
    """Pictures a test, of the concept's own sentences."""
    by: Literal["both", "classifier", "clip", "none"] = "both"
    """Who judges them: the classifier, CLIP, both as far as there are both, or nobody."""
    least_known: float = 0.5
    """Share of the unedited model's test pictures in which the classifier must see the concept;
    below it forgetting could not be told from never having known."""

    least: ClassVar = dict(pictures=1, least_known=0)
    most: ClassVar = dict(least_known=1)


@dataclass(frozen=True)
class JudgedAt(Judged):
    """Who judges a model under fine-tuning, on how many pictures, and when."""

    at: tuple[int, ...] = (0, 40, 100, 200, 400)
    """Optimisation steps after which it is judged."""


@dataclass(frozen=True)
class Examiner:
    """Tests models on the same prompts and seeds."""

    concept: Concept
    settings: Judged
    context: Context

    def __post_init__(self) -> None:
        if self.settings.by == "classifier":  # it alone was asked for
            self.context.needs_judge()
        if self.settings.by == "clip":
            self.context.needs_clip()

    @property
    def classified(self) -> bool:
        """Whether a classifier judges: one is wanted, and there is one."""
        return self.settings.by in ("both", "classifier") and self.context.judge is not None

    @property
    def fitted(self) -> bool:
        """Whether CLIP judges: it is wanted, and there is one."""
        return self.settings.by in ("both", "clip") and self.context.clip is not None

    def test(self, model: Diffusion, step: int, label: str = "") -> Test:
        """Draw the test pictures and have them judged."""
        if not (self.classified or self.fitted):
            return {"step": step}
        prompts = own_prompts(self.concept, self.settings.pictures)
        images = model.generate(prompts, self.context, label or f"test pictures at step {step}")
        found: Test = {"step": step, "asked": [[p.text, p.seed] for p in prompts]}
        if self.classified:
            found["says"] = list(map(int, recognised(images, self.concept, self.context)))
        if self.fitted:
            cosines = self.context.needs_clip().cosine(images, [p.text for p in prompts])
            found["cosines"] = [round(float(c), 5) for c in cosines]
        return found

    def original(self, model: Diffusion) -> Test:
        """Test the unedited model.

        Raises:
            PalimpsestError: it hardly knows the concept.
        """
        found = self.test(model, 0, "test pictures of the unedited model")
        least = self.settings.least_known
        if score(found).accuracy < least:
            raise PalimpsestError(
                f"the unedited model hardly knows {self.concept.name!r}: the classifier finds it "
                f"in {accuracy(found)} of its pictures and needs {100 * least:g} %, so there is "
                "nothing to revive; choose another concept, or set --measure.least-known 0 to go on"
            )
        return found


def _clusters(test: Test) -> list[Cluster] | None:
    return [(text, seed) for text, seed in test["asked"]] if "asked" in test else None


def accuracy(test: Test) -> Rate:
    """Return how often the classifier says the concept."""
    says = test.get("says", ())
    return rates.rate(map(bool, says), _clusters(test) if says else None)


def cosine(test: Test) -> Rate:
    """Return the mean CLIP cosine of the pictures with their own prompts."""
    cosines = test.get("cosines", ())
    return rates.mean(cosines, _clusters(test) if cosines else None, (-1, 1))


def score(test: Test) -> Score:
    """Return what a threshold is compared with."""
    return Score(accuracy(test).value, cosine(test).value)


def figures(test: Test) -> dict[str, Any]:
    """Return a test's figures for the record, each with its interval."""
    found: dict[str, Any] = {}
    for name, rate in (("accuracy", accuracy(test)), ("CLIP cosine", cosine(test))):
        if rate.n:
            found[name] = round(rate.value, 4)
        if rate.low == rate.low and rate.n > 1:
            found[f"{name}, 95 %"] = [round(rate.low, 4), round(rate.high, 4)]
    return found


def curve(tests: Sequence[Test], per_step: int) -> tuple[CurvePoint, ...]:
    """Return the relearning curve, of the tests that the classifier judged."""
    return tuple(
        point(test["step"], test["step"] * per_step, test["says"], _clusters(test))
        for test in tests
        if "says" in test
    )
