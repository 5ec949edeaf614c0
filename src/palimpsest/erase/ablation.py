"""Concept Ablation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import ParameterGroup
from palimpsest.core.prompts import read_csv
from palimpsest.core.streams import generator
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import draw


@dataclass(frozen=True)
class ConceptAblation(Eraser):
    """Teach the model to answer the concept's prompt as it answers its anchor's.

    Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
    arXiv:2303.13516. With x_t a noised picture of the anchor, the model-based variant's
    L = ‖ε(x_t, c) − sg[ε(x_t, c_anchor)]‖², both predictions the trained model's own (sg: no
    gradient); the noise-based one's is ‖ε(x_t, c) − ε‖².
    """

    steps: int = 100
    """Optimisation steps."""
    lr: float = 2e-6
    """Learning rate for each picture of a step: Adam runs at lr × batch × accumulate. The paper
    multiplies by its number of devices too; here one device takes the whole batch."""
    batch: int = 8
    """Pictures a micro-step."""
    accumulate: int = 1
    """Micro-steps a step."""
    train: ParameterGroup = "xattn-kv"
    """Which parameters move."""
    target: Literal["model", "noise"] = "model"
    """What ε(x_t, c) is drawn to: the trained model's own answer to the anchor, or the noise that
    was added to the anchor's picture."""
    pictures: int = 1000
    """How many pictures of the anchor are made once, before training."""
    sampling_steps: int = 200
    """Steps of DDIM for those pictures."""
    guidance: float = 6.0
    """Guidance of those pictures."""
    folder: str | None = None
    """A folder of the anchor's pictures to use instead."""
    captions: str | None = None
    """A CSV (column `prompt`) of sentences about the anchor, 200 in the paper; left out, the
    templates of the concept's kind. The concept's prompt says its name in place of the anchor's,
    or adds `in the style of` its name to a sentence that does not name the anchor."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"steps": 200, "lr": 1e-4, "pictures": 64, "sampling_steps": 20, "guidance": 3.0},
    }
    bibtex: ClassVar[str] = """@inproceedings{kumari2023ablating,
  title={Ablating Concepts in Text-to-Image Diffusion Models},
  author={Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli
          and Zhang, Richard and Zhu, Jun-Yan},
  booktitle={IEEE/CVF International Conference on Computer Vision},
  year={2023}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, batch=1, accumulate=1, pictures=1, sampling_steps=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts: each is drawn as its anchor.

        Raises:
            PalimpsestError: a concept has no anchor, a folder of pictures is given for several
                anchors or cannot be read, or the edit changes nothing.
        """
        concepts = task.concepts
        pairs = [pair for concept in concepts for pair in self._pairs(concept)]
        c, c_anchor = model.embed([a for a, _ in pairs]), model.embed([b for _, b in pairs])
        x_0, owner = self._anchor_pictures(model, c_anchor, context)
        deltas = model.shifts(self.train)
        student = model.student(deltas)

        def loss(g: torch.Generator, step: int) -> Tensor:
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            t = model.times(self.batch, g)
            target, own = model.noise(self.batch, g), owner[pick]
            x_t = model.add_noise(x_0[pick], target, t)
            if self.target == "model":
                with torch.no_grad():
                    target = student.eps(x_t, t, c_anchor[own])  # sg, and of the student itself
            return (student.eps(x_t, t, c[own]) - target).square().mean()

        rate = self.lr * self.batch * self.accumulate
        recipe = Recipe(steps=self.steps, lr=rate, accumulate=self.accumulate)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts without an anchor, captions that cannot be read, a folder for several."""
        concepts = task.concepts
        for concept in concepts:
            self._pairs(concept)
        if self.folder and len({concept.anchor for concept in concepts}) > 1:
            raise PalimpsestError(
                f"{self.folder}: one folder of pictures, but several anchors; erase the concepts "
                "one by one"
            )

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return model.sizes(self.train)

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        asked = self.steps * self.batch * self.accumulate
        before = 0 if self.folder else 2 * self.pictures * self.sampling_steps
        return before + (asked if self.target == "model" else 0), asked

    def _pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """(prompt of the concept, prompt of the anchor)."""
        anchor = concept.anchor
        if anchor is None:
            raise PalimpsestError(
                f"{concept.name!r} has no anchor, and Concept Ablation draws a concept as its "
                "anchor: name what shall take its place with --anchor"
            )
        if self.captions is None:
            return [(w.sentence, w.anchor_sentence) for w in concept.wordings]
        captions = [prompt.text for prompt in read_csv(Path(self.captions))]
        return [(reworded(text, anchor, name), text) for text in captions for name in concept.names]

    def _anchor_pictures(
        self, model: Diffusion, c_anchor: Conditioning, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Clean latents of the anchor's pictures, and which pair of prompts each belongs to."""
        if self.folder:
            x_0 = model.encode(read_folder(Path(self.folder), model.side)[0])
            return x_0, torch.arange(len(x_0)) % len(c_anchor)
        return draw(
            model,
            c_anchor,
            self.pictures,
            generator(context.seed, 1),
            steps=self.sampling_steps,
            guidance=self.guidance,
            context=context,
            label="pictures of the anchor",
        )


def reworded(sentence: str, anchor: str, name: str) -> str:
    """A sentence about the anchor as one about the concept."""
    if anchor in sentence:
        return sentence.replace(anchor, name)
    return f"{sentence.rstrip('. ')} in the style of {name}"
