"""Concept Ablation."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind, ParameterGroup
from palimpsest.core.prompts import read_csv
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.attention import begin_token_held
from palimpsest.toolbox.denoising import Examples, denoising, relabelling
from palimpsest.toolbox.optimise import Recipe, Trained, optimise
from palimpsest.toolbox.pictures import Drawn
from palimpsest.toolbox.shifting import Shifting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMS = ("{0}, in the style of {1}", "{1} inspired painting, {0}", "in {1}'s style, {0}")
"""How the authors' code names a style (1) with a sentence (0)."""


@dataclass(frozen=True)
class ConceptAblation(Trained, Shifting):
    """Teach the model to answer the concept's prompt as it answers its anchor's.

    Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
    arXiv:2303.13516. With x_t a noised picture of the anchor, the model-based variant's
    L = ‖ε(x_t, c) − sg[ε(x_t, c_anchor)]‖², both predictions the trained model's own (sg: no
    gradient); the noise-based one's is ‖ε(x_t, c) − ε‖².

    Traps: the learning rate scales with the batch; a run on k devices of batch b is repeated with
    batch k·b. Without captions the sentences are the templates of the concept's kind, not the
    paper's 200. A sentence about an object that does not name the anchor trains nothing under
    `model`, since its prompt stays. The teacher is the trained model, not the frozen one, so the
    target moves.
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
    weight_decay: float = 0.01
    """AdamW's weight decay. Theirs acts on the weights, here it acts on the shift."""
    hold_begin: bool = True
    """Let no gradient through the begin token's key and value in the cross-attention, as the
    authors' code; every prompt begins with that token."""
    target: Literal["model", "noise"] = "model"
    """What ε(x_t, c) is drawn to: the trained model's own answer to the anchor, or the noise that
    was added to the anchor's picture."""
    drawn: Drawn = Drawn(1000, steps=200, guidance=6.0)
    """Pictures of the anchor."""
    captions: Path | None = None
    """A CSV (column `prompt`) of sentences about the anchor, 200 in the paper: a language model's
    for an object, captions of LAION for a style. Left out, the templates of the concept's kind. Of
    a style the concept's prompt is the whole sentence with the style named before or after it;
    else it is the sentence with the concept's name in place of the anchor's."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "steps": 200,
            "lr": 1e-4,
            "weight_decay": 0.0,
            "hold_begin": False,
            "drawn": Drawn(64, steps=20, guidance=3.0),
        },
    }
    bibtex: ClassVar[str] = cite("kumari2023ablating")
    least: ClassVar = dict(batch=1, accumulate=1, weight_decay=0)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift: each concept is answered as its anchor.

        Raises:
            PalimpsestError: a folder that cannot be read, or the edit changes nothing.
        """
        if self.captions is not None:
            read_csv(self.captions, context.tell)  # what is skipped is said once
        pairs = [pair for concept in task.concepts for pair in self._pairs(concept)]
        ways = max(len(said) for said, _ in pairs)
        c = model.embed([said[k % len(said)] for k in range(ways) for said, _ in pairs])
        c_anchor = model.embed([sentence for _, sentence in pairs])
        g, label = context.stream("pictures"), "pictures of the anchor"
        x_0, owner = self.drawn.latents(model, c_anchor, g, context, label)
        anchor = Examples(x_0, owner, cond=c, other=c_anchor)
        deltas = model.shifts(self.train)
        student = model.student(deltas)
        answered = relabelling if self.target == "model" else denoising  # the paper's two losses

        def loss(g: torch.Generator, step: int) -> Tensor:
            return answered(student, anchor.batch(model, self.batch, g))

        rate = self.lr * self.batch * self.accumulate
        recipe = Recipe(self.steps, rate, "adamw", self.weight_decay, accumulate=self.accumulate)
        with begin_token_held(model) if self.hold_begin else nullcontext():
            optimise(loss, deltas, recipe, context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts without an anchor, captions that do not serve, one folder for two."""
        if self.hold_begin and not model.sites.attention:
            raise PalimpsestError(f"{model.name!r} has no cross-attention; set hold_begin to false")
        for concept in task.concepts:
            self._pairs(concept)
        if self.drawn.folder and len({concept.anchor for concept in task.concepts}) > 1:
            raise PalimpsestError(
                f"{self.drawn.folder}: one folder, several anchors; erase one by one"
            )

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        return Demand(self.batch, plain=self.batch)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        asked = self.steps * self.batch * self.accumulate
        return self.drawn.cost + (asked if self.target == "model" else 0), asked

    def _pairs(self, concept: Concept) -> list[tuple[tuple[str, ...], str]]:
        """Return each sentence about the anchor with the concept's prompts for it."""
        anchor = concept.anchor
        if anchor is None:
            raise PalimpsestError(
                f"{concept.name!r} has no anchor, and Concept Ablation draws a concept as its "
                "anchor: name what shall take its place with --anchor"
            )
        if self.captions is None:
            return [((w.sentence,), w.anchor_sentence) for w in concept.wordings]
        texts, kind = [prompt.text for prompt in read_csv(self.captions)], concept.kind
        pairs = [(reworded(s, anchor, name, kind), s) for s in texts for name in concept.names]
        if all(said == (text,) for said, text in pairs):
            raise PalimpsestError(f"{self.captions}: no sentence says {anchor!r}, the anchor")
        return pairs


def reworded(sentence: str, anchor: str, name: str, kind: Kind) -> tuple[str, ...]:
    """Return a sentence about the anchor as one about the concept, in every way it is said.

    A style is named before or after the whole sentence, once or twice. Anything else takes the
    anchor's place; a sentence that does not name the anchor stays.
    """
    if kind != "style":
        return (re.sub(re.escape(anchor), lambda _: name, sentence, flags=re.IGNORECASE),)
    return tuple(form.format(sentence, x) for x in (name, f"{name} {name}") for form in FORMS)
