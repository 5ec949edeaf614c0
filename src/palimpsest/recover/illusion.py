"""Illusion of Unlearning: fine-tune on related concepts and test whether the erased one revives."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics import revival
from palimpsest.metrics.revival import Score, Threshold
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox import curricula
from palimpsest.toolbox.curricula import TrainingData
from palimpsest.toolbox.finetune import Curriculum, FineTuning, fine_tune, steps_of
from palimpsest.toolbox.optimise import Trace
from palimpsest.toolbox.relearning_curve import Examiner, Judged, Test, curve, figures, score

if TYPE_CHECKING:
    from torch import Tensor

DEFINITIONS = {
    "both": "accuracy and CLIP in one test (paper)",
    "classifier": "accuracy alone (code)",
    "clip": "CLIP alone (code)",
}
"""What each revival point is called in the record."""


@dataclass(frozen=True)
class Illusion(FineTuning, Recovery):
    """Fine-tune the erased model on related but different concepts until the erased one revives.

    George et al., "The Illusion of Unlearning: The Unstable Nature of Machine Unlearning in
    Text-to-Image Diffusion Models", CVPR 2025. Curricula of captioned pictures, from the most
    general concepts to those most related to the erased one, which is in none of them, train the
    model by the usual loss ‖ε(x_t, c) − noise‖². After each the model is asked for the erased
    concept. The *revival point* is the first curriculum after which it comes.

    Traps: a revival is no recovery yet: related concepts may teach the concept anew, so gold and
    the unedited model are fine-tuned too. Weight decay pulls the shift toward the erased model.
    The moving average lags behind by about a tenth of the steps.
    """

    cuts: tuple[int, ...] = (50, 100, 150, 200, 250, 300, 350, 400, 450, 500)
    """Cumulative cut points of the curricula: `50 100` are the first 50 pictures and the next 50.
    What is beyond the last is not used; as many pictures are drawn as the last says."""
    mode: Literal["sequential", "individual"] = "sequential"
    """`sequential`: the curricula follow one another on one model. `individual`: each begins with
    the erased model and trains until the thresholds of `measure.by` are crossed."""
    epochs: int = 8
    """For `sequential`: epochs on each curriculum."""
    most_epochs: int = 91
    """For `individual`: epochs after which a curriculum is given up."""
    whole_epochs: Literal["first", "all"] = "first"
    """For `individual`: which epochs are whole. `first`: every later one is a single step on the
    first pictures, since the authors' counter of steps is never reset; `all`: all of them."""
    tested: Literal["last", "average"] = "last"
    """Which weights are tested, and stop the training: those of the last step (the authors' code),
    or their moving average. The average is what is kept in the end, if there is one; in individual
    mode `last` keeps what it tests."""
    test_every: int | None = None
    """For `individual`: epochs between tests; the last epoch is tested too, and the first if it
    alone is whole. When left out: 1 if the classifier alone decides, else 2."""
    accuracy_threshold: float = 0.3
    """Share of test pictures in which the classifier must see the concept."""
    clip_margin: float = 0.02
    """How far below the unedited model's own CLIP cosine the threshold lies."""
    clip_threshold: float | None = None
    """A CLIP cosine to exceed instead: 0.31 in the authors' code, which fits ViT-B/32 alone."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "cuts": (40, 80, 120, 160, 200),
            "lr": 5e-4,
            "batch": 8,
            "most_epochs": 89,
            "whole_epochs": "all",
            "tested": "average",
            "test_every": 2,
            "data": TrainingData(steps=20, guidance=3.0, source="world"),
            "measure": Judged(pictures=36),
        },
    }
    bibtex: ClassVar[str] = cite("george2025illusion")
    least: ClassVar = dict(epochs=1, most_epochs=1, test_every=1, clip_margin=0, clip_threshold=-1)
    most: ClassVar = dict(accuracy_threshold=1, clip_margin=2)
    above: ClassVar = dict(accuracy_threshold=0)
    below: ClassVar = dict(clip_threshold=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cuts or self.cuts[0] < 1 or any(a >= b for a, b in pairwise(self.cuts)):
            raise PalimpsestError(
                f"Illusion: cuts is {self.cuts}; cut points must begin at 1 or more and increase"
            )
        if self.mode == "individual" and self.measure.by == "none":
            raise PalimpsestError(
                "Illusion: measure.by is 'none', but `individual` trains until a judge sees the "
                "concept; choose who judges, or the sequential mode"
            )

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Try to bring `concept` back to `model` as edited by `erased`.

        Raises:
            PalimpsestError: no pictures, too few, or some of the concept; an unedited model that
                hardly knows the concept; no judge.
        """
        examiner = Examiner(concept, self.measure, context)
        parts = self.curricula(model, concept, context)
        original = examiner.original(model)
        threshold = self.threshold(original)
        with model.patched(erased):
            start = original if erased is None else examiner.test(model, 0)
            if self.mode == "sequential":
                tests, shifts = self._sequential(model, parts, examiner)
            else:
                tests, shifts = self._individual(model, parts, examiner, threshold)
            tests = [[start, *course] for course in tests]
        # tests that decided when to stop
        queries = 0 if self.mode == "sequential" else sum(len(course) - 1 for course in tests)
        patch = model.make_patch(shifts)
        drawn = [part.floats for part in parts] if self.data.source != "folder" else []
        return Result(
            patch,
            curve(tests[-1], self.per_step),
            images=torch.cat(drawn) if drawn else None,
            notes=self._notes(parts, original, tests, threshold),
            queries=queries * self.measure.pictures,
            evaluations=sum(course[-1]["step"] for course in tests) * self.per_step,
        )

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, tests aside, if no test ends it sooner."""
        alone = self.mode == "individual"
        ends = [max(self._test_steps(n)) for n in self._sizes] if alone else []
        steps = sum(ends or [steps_of(n, self.epochs, self.per_step) for n in self._sizes])
        return self.data.evaluations(self.cuts[-1]), steps * self.per_step

    def within(self, budget: int) -> Self:
        """Return it with as many epochs, and if not even one fits, pictures, as a budget pays for.

        An `individual` course ends when a judge says so, and stays as it is.
        """
        if self.mode == "individual":
            return self
        whole = max(1, budget // self.per_step // len(self.cuts))  # steps of a curriculum
        epochs = range(1, whole * self.per_step + 1)
        spent = lambda n: self.changed({"epochs": n}).evaluations()[1]  # noqa: E731
        if fitting := bisect_right(epochs, budget, key=spent):
            return self.changed({"epochs": epochs[fitting - 1]})
        kept = self.cuts[: max(1, budget // self.per_step)]
        size = max(1, budget // self.per_step // len(kept)) * self.per_step
        cuts = tuple(min(size, kept[0]) * (i + 1) for i in range(len(kept)))
        return self.changed({"cuts": cuts, "epochs": 1})

    @property
    def _sizes(self) -> list[int]:
        """Pictures of each curriculum."""
        return [b - a for a, b in pairwise([0, *self.cuts])]

    def threshold(self, original: Test) -> Threshold:
        """Return what a test must reach, given the unedited model's."""
        cosine = score(original).cosine - self.clip_margin
        return Threshold(
            self.accuracy_threshold,
            round(cosine, 5) if self.clip_threshold is None else self.clip_threshold,
        )

    def curricula(self, model: Diffusion, concept: Concept, context: Context) -> list[Pairs]:
        """Return the curricula in order, none of which shows the concept."""
        if self.data.source == "folder":
            parts = curricula.cut(curricula.from_folder(model, self.data.folder), self.cuts)
        else:
            topics = curricula.groups(self.data.topics(model, concept), len(self.cuts))
            asked = list(zip(topics, self._sizes, strict=True))
            parts = self.data.drawn(model, concept, asked, context)
        self.data.refuse_shown(parts, concept, context)
        return parts

    # --- the two modes: the tests of each training, and the shifts of the last ---

    def _sequential(
        self, model: Diffusion, parts: Sequence[Pairs], examiner: Examiner
    ) -> tuple[list[list[Test]], Mapping[str, Tensor]]:
        """Train one model on all curricula, and test it after each."""
        steps = [steps_of(len(part), self.epochs, self.per_step) for part in parts]
        stages = [Curriculum.of(model, p, n) for p, n in zip(parts, steps, strict=True)]
        tests, shifts = self._trained(model, stages, "curricula", {*accumulate(steps)}, examiner)
        return [tests], shifts

    def _individual(
        self,
        model: Diffusion,
        parts: Sequence[Pairs],
        examiner: Examiner,
        threshold: Threshold,
    ) -> tuple[list[list[Test]], Mapping[str, Tensor]]:
        """Train the erased model anew on each curriculum, Adam's moments too, to the threshold.

        The shifts are those of the last curriculum, the most related one, so that erased models are
        compared on the same.
        """
        own = self if self.tested == "average" else replace(self, ema=None)
        crosses = getattr(threshold, self.measure.by)
        found, shifts = [], {}
        for number, part in enumerate(parts, start=1):
            ends = self._test_steps(len(part)).keys() - {0}
            whole = None if self.whole_epochs == "all" else steps_of(len(part), 1, self.per_step)
            stages = [replace(Curriculum.of(model, part, max(ends)), whole=whole)]
            label = f"curriculum {number}"
            tests, shifts = own._trained(model, stages, label, ends, examiner, crosses)
            found.append(tests)
        return found, shifts

    def _trained(
        self,
        model: Diffusion,
        stages: Sequence[Curriculum],
        label: str,
        ends: Set[int],
        examiner: Examiner,
        enough: Callable[[Score], bool] = lambda score: False,
    ) -> tuple[list[Test], Mapping[str, Tensor]]:
        """Train a model on curricula and test it at the steps `ends`, until a test is enough."""

        def watch(trace: Trace, now: Diffusion) -> bool:
            if trace.step not in ends:
                return False
            test = examiner.test(now, trace.step)
            trace.notes.setdefault("tests", []).append(test)
            return enough(score(test))

        context, tested = examiner.context, self.tested
        trace, shifts = fine_tune(
            model, stages, self, context=context, label=label, watch=watch, tested=tested
        )
        return trace.notes["tests"], shifts

    def _test_steps(self, pictures: int) -> dict[int, int]:
        """Return the epochs that `individual` tests, by the step that each ends at; 0 is first."""
        every = self.test_every or (1 if self.measure.by == "classifier" else 2)
        one, whole = steps_of(pictures, 1, self.per_step), self.whole_epochs == "all"
        tested = [*range(0 if whole else 1, self.most_epochs, every), self.most_epochs]
        ends = [steps_of(pictures, e, self.per_step) if whole else one + e - 1 for e in tested]
        return {0: 0} | dict(zip(ends, tested, strict=True))

    # --- what the record shows ---

    def _notes(
        self,
        parts: Sequence[Pairs],
        original: Test,
        tests: list[list[Test]],
        threshold: Threshold,
    ) -> dict[str, Any]:
        """Return thresholds, the unedited model's own scores, and when the concept revived."""
        if self.measure.by == "none":
            return {}
        crossed = {}
        if self.measure.by != "clip":
            crossed["accuracy"] = threshold.accuracy
        if self.measure.by != "classifier":
            crossed["CLIP cosine"] = threshold.cosine
        rows = self._course if self.mode == "sequential" else self._separately
        about = {"thresholds": crossed, "unedited model": figures(original)}
        return {**about, **rows(parts, tests, threshold)}

    def _course(
        self, parts: Sequence[Pairs], tests: list[list[Test]], threshold: Threshold
    ) -> dict[str, Any]:
        """Return the revival points, counted in curricula, and a row for each curriculum."""
        (course,) = tests
        points = revival.points([score(test) for test in course], threshold)
        rows = [{"curriculum": 0, "pictures": 0, "step": 0, **figures(course[0])}]
        for number, (part, test) in enumerate(zip(parts, course[1:], strict=True), start=1):
            about = {"curriculum": number, "pictures": len(part), "step": test["step"]}
            rows.append({**about, **figures(test), "of": part.source})
        named = {DEFINITIONS[name]: point for name, point in points.items()}
        return {"revival point, in curricula": named, "curricula": rows}

    def _separately(
        self, parts: Sequence[Pairs], tests: list[list[Test]], threshold: Threshold
    ) -> dict[str, Any]:
        """Return for each curriculum after how many epochs the concept revived, None if never."""
        rows = []
        for number, (part, course) in enumerate(zip(parts, tests, strict=True), start=1):
            epochs = self._test_steps(len(part))
            passed = [epochs[test["step"]] for test in course]
            row: dict[str, Any] = {"curriculum": number, "pictures": len(part)}
            points = revival.points([score(test) for test in course], threshold)
            for name, point in points.items():
                row[f"epochs to {DEFINITIONS[name]}"] = None if point is None else passed[point]
            rows.append({**row, "epochs trained": passed[-1], "of": part.source})
        return {"curricula, each by itself": rows}
