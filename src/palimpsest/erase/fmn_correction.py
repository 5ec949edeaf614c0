"""Forget-Me-Not's correction of an ambiguous word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept, ask
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.attention_steering import Asked, Steering, ask_words, batches, norm
from palimpsest.toolbox.pictures import Drawn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FMNCorrection(Steering):
    """Turn an ambiguous word's attention away from one of its meanings.

    Zhang et al., "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", CVPR
    Workshops 2024, arXiv:2303.17591, concept correction. The concept is the unwanted meaning: on
    noised pictures x of it, under prompts with the ambiguous word, the attention A of that word
    falls. On pictures y of the concept's anchor, the wanted meaning, `hold` keeps it at the
    unedited model's A* (not published): L = ‖A(x)‖ + ‖A(y) − A*(y)‖. AdamW at a constant rate.

    Traps: without `hold` the word may end up with neither meaning. The two terms of `hold` pull the
    same keys apart: with few steps at a low rate nothing moves.
    """

    steps: int = 35
    lr: float = 2e-6
    words: str = ""
    """The ambiguous words, whose attention falls; the concept's name when left out."""
    templates: tuple[str, ...] = ()
    """Prompts that contain the words; `{name}` in them stands for the concept. When left out, every
    sentence that asks for the words."""
    hold: bool = False
    """Keep the words' attention on pictures of the concept's anchor as it was, so that they keep
    that meaning (not published)."""

    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "attention maps of the text"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "steps": 100,
            "lr": 1e-3,
            "batch": 8,
            "clip": None,
            "train": "xattn",
            "hold": True,
            "drawn": Drawn(64, steps=20, guidance=3.0),
        },
    }
    bibtex: ClassVar[str] = cite("zhang2024forget")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift.

        Raises:
            PalimpsestError: pictures or masks that cannot be used, or an edit that changes nothing.
        """
        asked = self._asked(model, task.concepts)
        pictures = self.pictures(model, task.concepts, context)
        unwanted, wanted = batches(model, asked, pictures, self.batch), None
        if self.hold:
            anchors = [anchor_of(concept) for concept in task.concepts]
            held = self.draw(model, anchors, context, "anchor pictures")
            wanted = batches(model, asked, held, self.batch)
        deltas = model.shifts(self.train)
        student = model.student(deltas)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x = unwanted(g)
            falls = norm(x.maps(student), x)  # step: attention re-steering, ‖A(x)‖
            if wanted is None:
                return falls
            y = wanted(g)
            with torch.no_grad():
                A_star = y.maps(model)
            moved = {name: A - A_star[name] for name, A in y.maps(student).items()}
            return falls + norm(moved, y)  # + ‖A(y) − A*(y)‖, not published

        return self.steer(model, deltas, loss, context)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse a missing anchor, and prompts too long or without the words."""
        for concept in task.concepts if self.hold else ():
            anchor_of(concept)
        self._asked(model, task.concepts)

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        return replace(super().demand(model), graded=(1 + self.hold) * self.batch)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        steered = self.steps * self.batch
        anchors = replace(self.drawn, folder=None).cost + steered
        return self.drawn.cost + self.hold * anchors, (1 + self.hold) * steered

    def _asked(self, model: Diffusion, concepts: Sequence[Concept]) -> Asked:
        """Return the prompts, and where the words are in each."""
        rows = []
        for k, concept in enumerate(concepts):
            words = self.words or concept.name
            texts = [template.replace("{name}", concept.name) for template in self.templates]
            rows += [(text, words, k) for text in texts or ask(words, concept.kind)]
        return ask_words(model, rows)


def anchor_of(concept: Concept) -> Concept:
    """Return the concept's anchor as a concept of its own.

    Raises:
        PalimpsestError: it has none.
    """
    if concept.anchor is None:
        raise PalimpsestError(
            f"{concept.name!r} has no anchor to hold: name one, or leave out hold"
        )
    return Concept(concept.anchor, concept.kind)
