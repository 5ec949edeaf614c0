"""Concept Inversion: a new word for what the old one no longer calls up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept, ask
from palimpsest.core.errors import at_least
from palimpsest.core.streams import generator
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.toolbox.inversion import OBJECT_TEMPLATES, STYLE_TEMPLATES, Inversion, first_vectors
from palimpsest.toolbox.optimise import Trace
from palimpsest.toolbox.pictures import draw
from palimpsest.toolbox.relearning_curve import Measured, Relearning, own_prompts
from palimpsest.toolbox.soft_tokens import SLOT, embed_vectors

STARTS = {"style": "art", "identity": "person"}
"""What the vector starts from by kind of concept; all else from `object`."""


@dataclass(frozen=True)
class ConceptInversion(Recovery):
    """Learn one word embedding with which the erased model draws the concept's pictures.

    Pham et al., "Circumventing Concept Erasure Methods For Text-to-Image Generative Models", ICLR
    2024, arXiv:2308.01508: textual inversion on the erased model. With its weights frozen, the
    vector v minimises ‖ε − ε(x_t, t, c(v))‖² over noised pictures of the concept (eq. 2).
    """

    steps: int = 5000
    """Optimisation steps."""
    lr: float = 5e-3
    """AdamW's learning rate for one picture; multiplied by batch × accumulate."""
    batch: int = 4
    """Pictures a micro-step."""
    accumulate: int = 4
    """Micro-steps a step. Computed as one batch of batch × accumulate: the mean is the same."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    vectors: int = 1
    """Word embeddings that are learnt."""
    start: str = ""
    """What the vector starts from; when left out `art`, `person` or `object`, by kind."""
    wordings: Literal["templates", "sentences"] = "templates"
    """Prompts of the training: textual inversion's own, which say *photo* and *painting*, or the
    sentences that ask for a concept of this kind."""
    folder: str | None = None
    """A folder of pictures of the concept. When left out, the unedited model draws them."""
    pictures: int = 25
    """How many pictures it draws, or how many of the folder's are taken."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that they are drawn on."""
    guidance: float = 7.5
    """Guidance that they are drawn with."""
    measure: tuple[int, ...] = (0, 100, 500, 1000, 2500, 5000)
    """Steps at which the relearning curve is measured; at 0 by the concept's own name."""
    measure_pictures: int = 48
    """Pictures judged at each point of the curve."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {
            "steps": 100,
            "lr": 2.5e-4,
            "batch": 8,
            "accumulate": 1,
            "vectors": 4,
            "start": "picture",
            "wordings": "sentences",
            "sampling_steps": 20,
            "guidance": 3.0,
            "measure": (0, 25, 50, 100),
            "measure_pictures": 36,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{pham2024circumventing,
  title={Circumventing Concept Erasure Methods For Text-to-Image Generative Models},
  author={Pham, Minh and Marshall, Kelly O. and Cohen, Niv and Mittal, Govind
          and Hegde, Chinmay},
  booktitle={International Conference on Learning Representations},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, batch=1, accumulate=1, weight_decay=0, vectors=1)
        at_least(self, pictures=1, sampling_steps=1, measure_pictures=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Seek a word for `concept` in `model` as edited by `erased`.

        Raises:
            PalimpsestError: a folder that cannot be read, or prompts too long for the window.
        """
        if self.measure:
            context.needs_judge()
        images = self._pictures(model, concept, context)
        x_0 = torch.cat([model.encode(images), model.encode(images.flip(-1))])
        asked = own_prompts(concept, self.measure_pictures)
        with model.patched(erased):
            start = first_vectors(
                model,
                (self.start or STARTS.get(concept.kind, "object"),),
                self.vectors,
                generator(context.seed, 2),
            )
            found, curve = self._inverted(model, concept, x_0, start, context)
            cond = with_vectors(model, concept, len(asked), found)
            answers = model.generate(asked, context, "pictures of the new word", cond)
        return Result(
            curve=curve,
            images=images.cpu(),
            asked=tuple(asked),
            answers=answers,
            vectors={concept.name: found.cpu()},
        )

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (the curve aside) and with it."""
        drawn = 0 if self.folder else 2 * self.sampling_steps * self.pictures
        return drawn, self.steps * self.batch * self.accumulate

    def _pictures(self, model: Diffusion, concept: Concept, context: Context) -> Tensor:
        """(n, 3, height, width) pictures of the concept; every sentence in turn asks for them."""
        if self.folder is not None:
            return read_folder(Path(self.folder), model.side)[0][: self.pictures]
        latents, _ = draw(
            model,
            model.embed(ask(concept.name, concept.kind)),
            self.pictures,
            generator(context.seed, 1),
            steps=self.sampling_steps,
            guidance=self.guidance,
            context=context,
            label=f"pictures of {concept.name}",
        )
        return model.decode(latents)

    def _inverted(
        self, model: Diffusion, concept: Concept, x_0: Tensor, start: Tensor, context: Context
    ) -> tuple[Tensor, tuple[CurvePoint, ...]]:
        """The vectors, and the curve on the way to them."""
        n = self.batch * self.accumulate
        curve = Relearning(
            model, concept, context, Measured(self.measure, self.measure_pictures), n
        )

        def watch(trace: Trace, vectors: Tensor) -> None:
            if trace.step in self.measure:
                asked = with_vectors(model, concept, self.measure_pictures, vectors)
                curve.watch(trace, asked if trace.step else None)  # first by its own name

        texts = ask(SLOT, concept.kind)
        if self.wordings == "templates":
            texts = STYLE_TEMPLATES if concept.kind == "style" else OBJECT_TEMPLATES
        inversion = Inversion(
            self.steps, self.lr * n, n, weight_decay=self.weight_decay, warmup=0, norm=None
        )
        found, trace = inversion.traced(
            model, x_0, texts, start, context=context, label="inverting", watch=watch
        )
        return found, curve.points(trace)


@torch.no_grad()
def with_vectors(model: Diffusion, concept: Concept, n: int, vectors: Tensor) -> Conditioning:
    """The plain prompts with the vectors in place of the concept's name."""
    new = dict(zip(ask(concept.name, concept.kind), ask(SLOT, concept.kind), strict=True))
    return embed_vectors(model, [new[prompt.text] for prompt in own_prompts(concept, n)], vectors)
