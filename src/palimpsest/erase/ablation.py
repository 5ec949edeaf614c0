"""Concept Ablation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup
from palimpsest.core.prompts import read_csv
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.denoising import Examples, denoising, relabelling
from palimpsest.toolbox.optimise import Recipe, Trained, optimise
from palimpsest.toolbox.pictures import Drawn


@dataclass(frozen=True)
class ConceptAblation(Trained, Eraser):
    """Teach the model to answer the concept's prompt as it answers its anchor's.

    Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
    arXiv:2303.13516. With x_t a noised picture of the anchor, the model-based variant's
    L = ‖ε(x_t, c) − sg[ε(x_t, c_anchor)]‖², both predictions the trained model's own (sg: no
    gradient); the noise-based one's is ‖ε(x_t, c) − ε‖².

    Traps: the learning rate scales with the batch; a run on k devices of batch b is repeated with
    batch k·b. Without captions the sentences are the templates of the concept's kind, not the
    paper's 200. The teacher is the trained model, not the frozen one, so the target moves.
    """

    steps: int = 100
    lr: float = 2e-6
    """Learning rate for each picture of a step: Adam runs at lr × batch × accumulate. The paper
    multiplies by its number of devices too; here one device takes the whole batch."""
    batch: int = 8
    """Pictures of the anchor a micro-step."""
    accumulate: int = 1
    """Micro-steps a step."""
    train: ParameterGroup = "xattn-kv"
    """Which parameters move."""
    target: Literal["model", "noise"] = "model"
    """What ε(x_t, c) is drawn to: the trained model's own answer to the anchor, or the noise that
    was added to the anchor's picture."""
    drawn: Drawn = Drawn(1000, steps=200, guidance=6.0)
    """Pictures of the anchor."""
    captions: Path | None = None
    """A CSV (column `prompt`) of sentences about the anchor, 200 in the paper; left out, the
    templates of the concept's kind. The concept's prompt says its name in place of the anchor's,
    or adds `in the style of` its name to a sentence that does not name the anchor."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {"steps": 200, "lr": 1e-4, "drawn": Drawn(64, steps=20, guidance=3.0)},
    }
    bibtex: ClassVar[str] = cite("kumari2023ablating")
    least: ClassVar = dict(batch=1, accumulate=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift: each concept is answered as its anchor.

        Raises:
            PalimpsestError: a folder that cannot be read, or the edit changes nothing.
        """
        pairs = [pair for concept in task.concepts for pair in self._pairs(concept)]
        c, c_anchor = model.embed([a for a, _ in pairs]), model.embed([b for _, b in pairs])
        g, label = context.stream("pictures"), "pictures of the anchor"
        x_0, owner = self.drawn.latents(model, c_anchor, g, context, label)
        anchor = Examples(x_0, owner, cond=c, other=c_anchor)
        deltas = model.shifts(self.train)
        student = model.student(deltas)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_t = anchor.batch(model, self.batch, g)
            if self.target == "model":
                return relabelling(student, x_t)  # the paper's model-based loss
            return denoising(student, x_t)  # the paper's noise-based loss

        rate = self.lr * self.batch * self.accumulate
        recipe = Recipe(self.steps, rate, accumulate=self.accumulate)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts without an anchor, captions that cannot be read, one folder for two."""
        for concept in task.concepts:
            self._pairs(concept)
        if self.drawn.folder and len({concept.anchor for concept in task.concepts}) > 1:
            raise PalimpsestError(
                f"{self.drawn.folder}: one folder of pictures, but several anchors; erase the "
                "concepts one by one"
            )

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        asked = self.steps * self.batch * self.accumulate
        return self.drawn.cost + (asked if self.target == "model" else 0), asked

    def _pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Return each prompt of the concept with the anchor's."""
        anchor = concept.anchor
        if anchor is None:
            raise PalimpsestError(
                f"{concept.name!r} has no anchor, and Concept Ablation draws a concept as its "
                "anchor: name what shall take its place with --anchor"
            )
        if self.captions is None:
            return [(w.sentence, w.anchor_sentence) for w in concept.wordings]
        captions = [prompt.text for prompt in read_csv(self.captions)]
        return [(reworded(text, anchor, name), text) for text in captions for name in concept.names]


def reworded(sentence: str, anchor: str, name: str) -> str:
    """Return a sentence about the anchor as one about the concept."""
    if anchor in sentence:
        return sentence.replace(anchor, name)
    return f"{sentence.rstrip('. ')} in the style of {name}"
