"""LLaVA as the methods see it: what it answers about pictures, and weights that patches act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.models.clip import VisionLanguageModel

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = "<image>"
"""Stands for the picture; LLaVA reads as many of them as the picture has patches."""

CHAT = f"USER: {IMAGE}\n{{question}} ASSISTANT:"
"""LLaVA-1.5's own form of a question."""

LAYER = re.compile(r"vision\.encoder\.layers\.(\d+)\.")


@dataclass(repr=False)
class Answerer(VisionLanguageModel):
    """A LLaVA behind a few verbs.

    Its vision tower goes by the names of CLIP's, so that a patch of a CLIP's vision tower is a
    patch of every LLaVA that sees through it; the fingerprints refuse all others.
    """

    family: ClassVar[str] = "llava"
    """What runs of it are called in their records."""

    batch: int = 32
    """Pictures asked about at once."""
    words: int = 32
    """Tokens of an answer at most."""

    offers: ClassVar[frozenset[str]] = frozenset({"answers"})
    """What a method may need of this model."""

    def __post_init__(self) -> None:
        whole = self.model.model
        tower = whole.vision_tower
        self._adopt(
            {
                "vision": getattr(tower, "vision_model", tower),
                "projector": whole.multi_modal_projector,
                "language": whole.language_model,
                "head": self.model.lm_head,
            }
        )

    @property
    def width(self) -> int:
        """Width of its vision tower."""
        return int(self._vision.hidden_size)

    @property
    def depth(self) -> int:
        """How many layers of the vision tower it reads: those up to `vision_feature_layer`."""
        chosen = self.model.config.vision_feature_layer
        places = range(self._vision.num_hidden_layers + 1)  # the embeddings, then every layer
        return max(places[k] for k in ([chosen] if isinstance(chosen, int) else chosen))

    def reads(self, name: str) -> bool:
        """Return whether a parameter of CLIP is one of a layer that its answers depend on.

        The layers past the one whose features it takes are not, nor are CLIP's last norm and
        projection.
        """
        layer = LAYER.match(name)
        return name in self._parameters and layer is not None and int(layer[1]) < self.depth

    def matrices(self) -> dict[str, Tensor]:
        """Return the weight matrices of the vision tower that its answers depend on, by name."""
        return {n: p for n, p in self._parameters.items() if self.reads(n) and p.ndim == 2}

    @no_grad
    def ask(self, images: Tensor, question: str | Sequence[str]) -> list[str]:
        """Return what it answers about each picture, word for word the likeliest each time.

        Args:
            images: (n, 3, side, side) bytes, or numbers in [0, 1].
            question: one for all, or one for each.

        Raises:
            PalimpsestError: pictures of another size, or a view: patches move what it answers.
        """
        if self._overlay is not None:
            raise PalimpsestError("a view of a LLaVA answers nothing; lay a patch over the model")
        if images.shape[-2:] != (self.side, self.side):
            size = "×".join(map(str, images.shape[-2:]))
            raise PalimpsestError(
                f"pictures of {size} pixels; {self.name!r} reads {self.side}×{self.side}"
            )
        questions = [question] * len(images) if isinstance(question, str) else list(question)
        texts = [self._chat(q) for q in questions]
        said: list[str] = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            said += self._answers(images[part], texts[part])
        return said

    def _chat(self, question: str) -> str:
        strategy = self.model.config.vision_feature_select_strategy
        whole = strategy != "default"  # then the class token counts
        patches = (self.side // self._vision.patch_size) ** 2 + whole
        return CHAT.format(question=question).replace(IMAGE, IMAGE * patches)

    def _answers(self, images: Tensor, texts: list[str]) -> list[str]:
        given = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        ids = self.model.generate(
            input_ids=given.input_ids.to(self.device),
            attention_mask=given.attention_mask.to(self.device),
            pixel_values=self._pixels(images),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.words,
        )
        new = ids[:, given.input_ids.shape[1] :]
        return [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
