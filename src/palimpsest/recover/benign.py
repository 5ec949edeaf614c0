"""Benign fine-tuning: does the concept come back by itself while the model learns other things?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Recovery, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox import curricula
from palimpsest.toolbox.curricula import TrainingData
from palimpsest.toolbox.finetune import Curriculum, FineTuning, fine_tune
from palimpsest.toolbox.optimise import Trace, Trained
from palimpsest.toolbox.relearning_curve import Examiner, JudgedAt, curve, figures


@dataclass(frozen=True)
class Benign(FineTuning, Trained, Recovery):
    """Fine-tune the erased model on pictures that have nothing to do with the erased concept.

    Suriyakumar et al., "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion
    Models", 2024, arXiv:2410.08074: even so the concept may come back. The loss is the usual
    ‖ε(x_t, c) − noise‖²; there is no attack.

    Traps: gold must be fine-tuned too: what it shows is the judge's error and what fine-tuning
    itself does. Unrelated is what the text encoder finds so; for a person's notion give a folder.
    A flat curve speaks of this training at this budget alone.
    """

    steps: int = 400
    pictures: int = 500
    """Pictures to train on: so many are drawn, or the first of the folder."""
    unrelated: int = 8
    """For drawn pictures: how many of the things that could be drawn are, those least like the
    concept to the model's text encoder."""
    measure: JudgedAt = JudgedAt(at=(0, 40, 100, 200, 400))
    """Who judges the model, on how many pictures, and after which steps."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "steps": 200,
            "pictures": 200,
            "lr": 5e-4,
            "batch": 8,
            "data": TrainingData(steps=20, guidance=3.0, source="world"),
            "measure": JudgedAt(pictures=36, at=(0, 40, 80, 120, 160, 200)),
        },
    }
    bibtex: ClassVar[str] = cite("suriyakumar2024unstable")
    least: ClassVar = dict(steps=1, pictures=1, unrelated=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Fine-tune `model` as edited by `erased`, and test whether `concept` comes back.

        Raises:
            PalimpsestError: no pictures, or some of the concept; an unedited model that hardly
                knows the concept; no judge.
        """
        examiner = Examiner(concept, self.measure, context)
        pictures = self.training(model, concept, context)
        original = examiner.original(model)

        def watch(trace: Trace, now: Diffusion) -> None:
            if trace.step in self.measure.at:
                same = trace.step == 0 and erased is None
                test = original if same else examiner.test(now, trace.step)
                trace.notes.setdefault("tests", []).append(test)

        with model.patched(erased):
            curriculum = Curriculum.of(model, pictures, self.steps)
            trace, shifts = fine_tune(
                model, [curriculum], self, context=context, label="fine-tuning", watch=watch
            )
        patch = model.make_patch(shifts)
        tests = trace.notes.get("tests", [])
        return Result(
            patch,
            curve(tests, self.per_step),
            images=None if self.data.source == "folder" else pictures.floats,
            notes={
                "pictures": {"n": len(pictures), "of": pictures.source},
                "unedited model": figures(original),
                "tests": [{"step": test["step"], **figures(test)} for test in tests],
            },
        )

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, tests aside, without and with gradient."""
        return self.data.evaluations(self.pictures), self.steps * self.per_step

    def training(self, model: Diffusion, concept: Concept, context: Context) -> Pairs:
        """Return the pictures to train on, none of which shows the concept."""
        if self.data.source == "folder":
            pictures = curricula.from_folder(model, self.data.folder)[: self.pictures]
        else:
            topics = self.data.topics(model, concept)
            if len(topics) < self.unrelated:
                raise PalimpsestError(
                    f"only {len(topics)} things could be drawn, and unrelated asks for "
                    f"{self.unrelated}; name more with --data.related, or lower --unrelated"
                )
            parts = [(topics[: self.unrelated], self.pictures)]
            (pictures,) = self.data.drawn(model, concept, parts, context)
        self.data.refuse_shown([pictures], concept, context)
        return pictures
