"""Forget-Me-Not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept, ask
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import without_ids
from palimpsest.toolbox.attention import end_of_text
from palimpsest.toolbox.attention_steering import (
    Asked,
    Steering,
    ask_words,
    batches,
    mean_square,
    norm,
    without,
)
from palimpsest.toolbox.inversion import Inversion, first_vectors
from palimpsest.toolbox.pictures import Drawn, PictureLatents
from palimpsest.toolbox.soft_tokens import SLOT, embed_vectors, token_ids

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FMN(Steering):
    """Turn the attention of every pixel away from the concept's words.

    Zhang et al., "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", CVPR
    Workshops 2024, arXiv:2303.17591. Attention re-steering: with A the cross-attention
    probabilities of the concept's tokens over all layers, heads and pixels, on noised pictures of
    the concept, the loss is the Frobenius norm ‖A‖. AdamW at a constant rate.

    Traps: nothing says what shall come instead, and nothing retains the neighbours. The last value
    and output projections are behind all attention, so they get no gradient. `pooler` reaches every
    prompt, since the ends of all look much alike to the attention. Inverted vectors reach the words
    only as far as both draw attention to the same place.
    """

    steps: int = 35
    lr: float = 2e-6
    objective: Literal["norm", "logit-difference"] = "norm"
    """The norm of all probabilities together; or, as SRS-ME's authors ran it, how far the logits of
    attention are from those of the same prompt without the words."""
    pooler: bool = True
    """Let the attention of every `<|endoftext|>` fall too, the padding of Stable Diffusion 1.x
    included."""
    tail: bool = False
    """Let the attention of every word after the concept's fall too: a causal text encoder lets them
    carry it (not published)."""
    wordings: Literal["photo", "sentences"] = "photo"
    """What is prompted: `a photo of …` or `a photo in the style of …`, or every sentence that asks
    for the concept."""
    templates: tuple[str, ...] = ()
    """Prompts of one's own in place of the wordings; `{name}` in them stands for the concept."""
    latents: Literal["pictures", "noise"] = "pictures"
    """Where the attention is computed: on the concept's pictures with noise added, or on noise
    alone."""
    placeholders: int = 0
    """Vectors to find by textual inversion first, then to forget in place of the concept's words;
    0 forgets the words (published: 4 where inversion is used)."""
    starts: tuple[str, ...] = ()
    """What the vectors start from, one entry each, the rest random. When left out the first starts
    from the concept's name."""
    spread: float | None = 1.0
    """Standard deviation of the vectors' random starts, some seventy times that of words; None is
    that of the model's own embeddings."""
    inversion: Inversion = Inversion(warmup=0)
    """How the vectors are trained."""

    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "attention maps of the text"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inverted": {"placeholders": 4},
        "srs-me": {
            "lr": 1e-5,
            "steps": 11,
            "gradients": "summed",
            "weight_decay": 0.0,
            "clip": None,
            "train": "xattn",
            "objective": "logit-difference",
            "pooler": False,
            "templates": ("a painting of {name}",),
        },
        "world": {
            "steps": 70,
            "lr": 4e-4,
            "batch": 8,
            "clip": None,
            "train": "xattn-kv",
            "tail": True,
            "wordings": "sentences",
            "drawn": Drawn(64, steps=20, guidance=3.0),
            "spread": None,
            "inversion": Inversion(),
        },
    }
    bibtex: ClassVar[str] = cite("zhang2024forget")
    least: ClassVar = dict(placeholders=0, spread=0)

    @classmethod
    def renamed(cls, name: str) -> list[str]:
        """Refuse the settings of the correction, which is an eraser of its own."""
        if name in ("words", "hold"):
            raise PalimpsestError(
                f"{name} is a setting of fmn_correction, which corrects an ambiguous word: use "
                "`palimpsest erase fmn_correction`"
            )
        return super().renamed(name)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._looks and self.drawn.folder:
            raise PalimpsestError(
                "FMN: latents 'noise' looks at no picture; leave out drawn.folder"
            )
        if len(self.starts) > self.placeholders:
            raise PalimpsestError(
                f"FMN: starts has {len(self.starts)} entries for {self.placeholders} placeholders"
            )

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift.

        Raises:
            PalimpsestError: pictures or masks that cannot be used, or an edit that changes nothing.
        """
        concepts, invert = task.concepts, self.placeholders > 0
        pictures = self.pictures(model, concepts, context, invert) if self._looks else []
        if invert:
            asked = self._inverted(model, concepts, pictures, context)
        else:
            asked = self._words(model, concepts)
        noised = pictures if self.latents == "pictures" else []
        batch = batches(model, self._widened(model, asked), noised, self.batch)
        deltas = model.shifts(self.train)
        student = model.student(deltas)
        bare = model.embed(asked.bare) if self.objective == "logit-difference" else None

        def loss(g: torch.Generator, step: int) -> Tensor:
            seen = batch(g)
            if bare is not None:  # SRS-ME's code: Σ_layers mean (q·(K − K')ᵀ/√d)²
                return mean_square(seen.differences(student, bare[seen.prompt]), seen)
            A = seen.maps(student)  # softmax(q·Kᵀ/√d) at the tokens of S
            return norm(A, seen)  # step: attention re-steering, L = ‖m·A‖

        return self.steer(model, deltas, loss, context)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse prompts too long or without the concept's words."""
        if not self.placeholders:
            self._words(model, task.concepts)
        for concept in task.concepts if self.placeholders else ():
            token_ids(model, self._wordings(SLOT, concept), self.placeholders)

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        steered = super().demand(model)
        if not self.placeholders:
            return steered
        inverted = self.inversion.batch
        return replace(steered, prompts=inverted, encoded=ENCODED)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        inverted = self.inversion.steps * self.inversion.batch if self.placeholders else 0
        return self.drawn.cost if self._looks else 0, self.steps * self.batch + inverted

    @property
    def _looks(self) -> bool:
        """Whether pictures are looked at, by the attention or by the inversion."""
        return self.latents == "pictures" or self.placeholders > 0

    # --- the prompts, and S in each ---

    def _wordings(self, name: str, concept: Concept) -> tuple[str, ...]:
        """Return the prompts that ask for the concept by a name."""
        if self.templates:
            return tuple(template.replace("{name}", name) for template in self.templates)
        if self.wordings == "sentences":
            return ask(name, concept.kind)
        of = "in the style of" if concept.kind == "style" else "of"
        return (f"a photo {of} {name}",)

    def _words(self, model: Diffusion, concepts: Sequence[Concept]) -> Asked:
        """Return prompts with the concepts' own words."""
        rows = [
            (text, name, k)
            for k, concept in enumerate(concepts)
            for name in concept.names
            for text in self._wordings(name, concept)
        ]
        return ask_words(model, rows)

    def _inverted(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        pictures: Sequence[PictureLatents],
        context: Context,
    ) -> Asked:
        """Return prompts with vectors in place of the concepts' words."""
        found = []
        for k, (concept, shown) in enumerate(zip(concepts, pictures, strict=True)):
            assert shown.mirrored is not None
            # the pictures are inverted as they are and mirrored
            x_0, names = torch.cat([shown.x_0, shown.mirrored]), self.starts or (concept.name,)
            g = context.stream("vectors", k)
            start = first_vectors(model, names, self.placeholders, g, spread=self.spread)
            texts, label = self._wordings(SLOT, concept), f"inverting {concept.name}"
            vectors = self.inversion(model, x_0, texts, start, context=context, label=label)[0]
            ids, slots = token_ids(model, texts, self.placeholders)
            with torch.no_grad():
                cond = without_ids(embed_vectors(model, texts, vectors))
            bare = tuple(without(text, SLOT) for text in texts)
            found.append(Asked(cond, ids, slots, (k,) * len(texts), bare))
        return reduce(add, found)

    def _widened(self, model: Diffusion, asked: Asked) -> Asked:
        """Return the prompts with `tail` and `pooler` added to S."""
        wanted, ends = asked.wanted, end_of_text(model, asked.ids)
        if self.tail:
            wanted = wanted | (wanted.cumsum(1) > 0) & ~ends
        if self.pooler:
            wanted = wanted | ends
        return replace(asked, wanted=wanted)
