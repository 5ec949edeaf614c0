"""Benign fine-tuning: does the concept come back by itself while the model learns other things?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Recovery, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox import curricula
from palimpsest.toolbox.finetune import Curriculum, Examiner, FineTuning, curve, figures, fine_tune
from palimpsest.toolbox.optimise import Trace


@dataclass(frozen=True)
class Benign(FineTuning, Recovery):
    """Fine-tune the erased model on pictures that have nothing to do with the erased concept.

    Suriyakumar et al., "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion
    Models", 2024, arXiv:2410.08074: even so the concept may come back. The loss is the usual
    ‖ε(x_t, c) − noise‖²; nobody attacks.
    """

    steps: int = 400
    """Optimisation steps."""
    pictures: int = 500
    """Pictures to train on: so many are drawn, or the first of the folder."""
    unrelated: int = 8
    """For drawn pictures: how many of the things that could be drawn are, those least like the
    concept to the model's text encoder."""
    measure: tuple[int, ...] = (0, 40, 100, 200, 400)
    """Steps at which the relearning curve is measured."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {
            "source": "world",
            "steps": 200,
            "pictures": 200,
            "lr": 5e-4,
            "batch": 8,
            "sampling_steps": 20,
            "guidance": 3.0,
            "measure": (0, 40, 80, 120, 160, 200),
            "measure_pictures": 36,
        },
    }
    bibtex: ClassVar[str] = """@article{suriyakumar2024unstable,
  title={Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models},
  author={Suriyakumar, Vinith M. and Alur, Rohan and Sekhari, Ayush and Raghavan, Manish
          and Wilson, Ashia C.},
  journal={arXiv preprint arXiv:2410.08074},
  year={2024}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, steps=1, pictures=1, unrelated=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """See whether `concept` comes back to `model` as edited by `erased`.

        Raises:
            PalimpsestError: no pictures, or some of the concept; a patch of another base
                model; an unedited model that hardly knows the concept; nobody to look.
        """
        examiner = Examiner(concept, self, context)
        pictures = self.training(model, concept, context)
        original = examiner.original(model)

        def watch(trace: Trace, now: Diffusion) -> None:
            if trace.step in self.measure:
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
            images=None if self.source == "folder" else pictures.floats,
            notes={
                "pictures": {"n": len(pictures), "of": pictures.source},
                "unedited model": figures(original),
                "tests": [{"step": test["step"], **figures(test)} for test in tests],
            },
        )

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (tests aside) and with it."""
        return self.drawing(self.pictures), self.steps * self.per_step

    def training(self, model: Diffusion, concept: Concept, context: Context) -> Pairs:
        """The pictures to train on, none of which shows the concept."""
        if self.source == "folder":
            found = curricula.from_folder(model, self.folder)
            pictures = found[: self.pictures]
        else:
            topics = self.topics(model, concept)
            if len(topics) < self.unrelated:
                raise PalimpsestError(
                    f"only {len(topics)} things could be drawn, and unrelated asks for "
                    f"{self.unrelated}; name more with --related, or lower --unrelated"
                )
            parts = [(topics[: self.unrelated], self.pictures)]
            (pictures,) = self.drawn(model, concept, parts, context)
        self.refuse_shown([pictures], concept, context)
        return pictures
