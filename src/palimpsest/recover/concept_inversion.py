"""Concept Inversion: a new word for what the old one no longer draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept, ask
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.lazily import no_grad
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.toolbox.asking import answered, in_vectors
from palimpsest.toolbox.inversion import ASKED_BY, OBJECT_TEMPLATES, Inversion, first_vectors
from palimpsest.toolbox.optimise import Trace, Trained
from palimpsest.toolbox.pictures import Drawn
from palimpsest.toolbox.relearning_curve import Measured, Relearning, own_prompts
from palimpsest.toolbox.soft_tokens import SLOT, embed_soft, token_ids

if TYPE_CHECKING:
    from torch import Tensor

STARTS = {"style": "art", "identity": "person"}
"""What the vector starts from by kind of concept; all else from `object`."""


@dataclass(frozen=True)
class ConceptInversion(Trained, Recovery):
    """Learn one word embedding with which the erased model draws the concept's pictures.

    Pham et al., "Circumventing Concept Erasure Methods For Text-to-Image Generative Models", ICLR
    2024, arXiv:2308.01508: textual inversion on the erased model. With its weights frozen, the
    vector v minimises ‖ε − ε(x_t, t, c(v))‖² over noised pictures of the concept (eq. 2). AdamW at
    a constant rate: `lr` for one picture, multiplied by batch × accumulate, as their commands do.

    Traps: a vector can also teach, so gold's curve must be measured, too. The curve at step 0 asks
    by the concept's own name. The templates say *photo* and *painting*, which the world knows as
    styles. An SPM adapter finds no words in a vector and opens by its embedding's cosine alone.
    """

    steps: int = 5000
    lr: float = 5e-3
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
    drawn: Drawn = Drawn(25, steps=50, guidance=7.5)
    """Pictures of the concept: drawn by the unedited model, or the first of a folder."""
    measure: Measured = Measured((0, 100, 500, 1000, 2500, 5000), pictures=48)
    """When the relearning curve is measured, and on how many pictures."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "steps": 100,
            "lr": 2.5e-4,
            "batch": 8,
            "accumulate": 1,
            "vectors": 4,
            "start": "picture",
            "wordings": "sentences",
            "drawn": Drawn(25, steps=20, guidance=3.0),
            "measure": Measured((0, 25, 50, 100), pictures=36),
        },
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "a CLIP text encoder"})
    bibtex: ClassVar[str] = cite("pham2024circumventing")
    least: ClassVar = dict(batch=1, accumulate=1, weight_decay=0, vectors=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Learn a word for `concept` in `model` as edited by `erased`.

        Raises:
            PalimpsestError: a folder that cannot be read, prompts too long for the window, no
                judge.
        """
        curve = Relearning(model, concept, context, self.measure, self.batch * self.accumulate)
        images = self._pictures(model, concept, context)
        x_0 = torch.cat([model.encode(images), model.encode(images.flip(-1))])
        asked = own_prompts(concept, self.measure.pictures)
        with model.patched(erased):
            found, points = self._inverted(model, x_0, curve)
            asking = in_vectors(model, asked, *slotted(model, concept, len(asked), found))
            answers = answered(model, asking, context, "pictures of the new word")
        return Result(
            curve=points,
            images=images.cpu(),
            asked=tuple(asked),
            answers=answers,
            asking=asking,
            vectors={concept.name: found.cpu()},
        )

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        n = self.batch * self.accumulate
        return Demand(n, prompts=n, encoded=ENCODED)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, the curve aside."""
        return self.drawn.cost, self.steps * self.batch * self.accumulate

    def _pictures(self, model: Diffusion, concept: Concept, context: Context) -> Tensor:
        """Draw (n, 3, height, width) pictures of the concept by all its sentences, or read them."""
        if self.drawn.folder is not None:
            return read_folder(self.drawn.folder, model.side)[0][: self.drawn.pictures]
        cond, g = model.embed(ask(concept.name, concept.kind)), context.stream("pictures")
        label = f"pictures of {concept.name}"
        return model.decode(self.drawn.draw(model, cond, g, context, label)[0])

    def _inverted(
        self, model: Diffusion, x_0: Tensor, curve: Relearning
    ) -> tuple[Tensor, tuple[CurvePoint, ...]]:
        """Train the vectors; return them, and the curve on the way."""
        concept, context, n = curve.concept, curve.context, self.batch * self.accumulate

        def watch(trace: Trace, vectors: Tensor) -> None:
            if trace.step in self.measure.at:
                asked = with_vectors(model, concept, self.measure.pictures, vectors)
                curve.watch(trace, asked if trace.step else None)  # first by its own name

        texts = ask(SLOT, concept.kind)
        if self.wordings == "templates":
            texts = ASKED_BY.get(concept.kind, OBJECT_TEMPLATES)
        word = self.start or STARTS.get(concept.kind, "object")
        start = first_vectors(model, (word,), self.vectors, context.stream("vectors"))
        inversion = Inversion(self.steps, self.lr * n, n, self.weight_decay, warmup=0, norm=None)
        found, trace = inversion(
            model, x_0, texts, start, context=context, label="inverting", watch=watch
        )
        return found, curve.points(trace)


@no_grad
def with_vectors(model: Diffusion, concept: Concept, n: int, vectors: Tensor) -> Conditioning:
    """Embed the concept's own prompts with the vectors in place of its name."""
    return embed_soft(model, *slotted(model, concept, n, vectors))


def slotted(
    model: Diffusion, concept: Concept, n: int, vectors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, slots and vectors of the concept's own prompts, as `embed_soft` takes them."""
    new = dict(zip(ask(concept.name, concept.kind), ask(SLOT, concept.kind), strict=True))
    texts = [new[prompt.text] for prompt in own_prompts(concept, n)]
    return *token_ids(model, texts, len(vectors)), vectors.repeat(n, 1)
