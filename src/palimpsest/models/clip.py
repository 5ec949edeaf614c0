"""CLIP as the methods see it: features of pictures and texts, and weights that patches act on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.core.prompts import named
from palimpsest.models.editable import Editable
from palimpsest.models.text import padded
from palimpsest.patch.patch import same_base

if TYPE_CHECKING:
    from torch import Tensor

TOWERS = {
    "text_encoder": "text",
    "text_projection": "text",
    "vision": "vision",
    "visual_projection": "vision",
}
"""The first part of a parameter's canonical name → its tower."""


def tower(name: str) -> str:
    """Return the tower that a parameter belongs to: `text` or `vision`."""
    return TOWERS[name.split(".", 1)[0]]


@dataclass(repr=False)
class VisionLanguageModel(Editable):
    """A model of Transformers that reads pictures through a CLIP's vision tower."""

    name: str
    model: Any
    tokenizer: Any
    mean: Sequence[float]
    """Mean that its pictures are normalised by, per channel."""
    std: Sequence[float]
    """Standard deviation likewise."""

    @property
    def side(self) -> int:
        """Height and width of its pictures in pixels."""
        return int(self._vision.image_size)

    @property
    def _vision(self) -> Any:
        return self.model.config.vision_config

    def _pixels(self, images: Tensor) -> Tensor:
        """Return pictures as its vision tower reads them: bytes, or numbers in [0, 1]."""
        x = images.to(self.device, torch.promote_types(self.dtype, torch.float32))
        middle, spread = (torch.tensor(v).to(x)[:, None, None] for v in (self.mean, self.std))
        x = x / 255 if images.dtype == torch.uint8 else x
        return ((x - middle) / spread).to(self.dtype)


@dataclass(repr=False)
class ContrastiveEncoder(VisionLanguageModel):
    """A CLIP model behind a few verbs.

    Its text tower goes by the names of Stable Diffusion's text encoder, so that a patch of it is a
    patch of every pipeline whose text encoder it is; the fingerprints refuse all others.
    """

    family: ClassVar[str] = "clip"
    """What runs of it are called in their records."""

    offers: ClassVar[frozenset[str]] = frozenset({"contrastive"})
    """What a method may need of this model."""

    def __post_init__(self) -> None:
        self._adopt(
            {
                "text_encoder": self.model.text_model,
                "text_projection": self.model.text_projection,
                "vision": self.model.vision_model,
                "visual_projection": self.model.visual_projection,
            }
        )

    @property
    def scale(self) -> Tensor:
        """The factor that turns cosines into logits, as it was trained."""
        return self.model.logit_scale.detach().exp()

    def parameters(self) -> dict[str, Tensor]:
        """Return both towers' parameters by canonical name, without the logit scale."""
        return dict(self._parameters)

    def matrices(self, of: str | None = None) -> dict[str, Tensor]:
        """Return the weight matrices of both towers or of one, by canonical name.

        Biases, norms, positions, embeddings and the logit scale are left out.
        """
        return {
            name: p
            for name, p in self._parameters.items()
            if p.ndim == 2 and "embedding" not in name and of in (None, tower(name))
        }

    def leaf(self, name: str) -> Tensor:
        """Return a copy of a weight to take gradients by, in float32 at least."""
        weight = self.weight(name).detach()
        kind = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(kind, copy=True).requires_grad_()

    # --- features ---

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return (n, window) token ids, padded and cut."""
        window = self.model.config.text_config.max_position_embeddings
        return padded(self.tokenizer, named(texts, self.name), window).to(self.device)

    def text_features(self, ids: Tensor) -> Tensor:
        """Map (n, window) token ids → (n, d) features of length one."""
        pooled = self._call("text_encoder", input_ids=ids).pooler_output
        return torch.nn.functional.normalize(_full(self._call("text_projection", pooled)), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Map (n, 3, side, side) bytes, or numbers in [0, 1] → (n, d) features of length one."""
        pooled = self._call("vision", pixel_values=self._pixels(images)).pooler_output
        return torch.nn.functional.normalize(_full(self._call("visual_projection", pooled)), dim=-1)

    @no_grad
    def images(self, images: Tensor, micro: int = 128) -> Tensor:
        """Return features of many pictures, without gradient."""
        return torch.cat([self.image_features(part) for part in images.split(micro)])

    @no_grad
    def texts(self, texts: Sequence[str], micro: int = 128) -> Tensor:
        """Return features of many texts, without gradient; each distinct one is encoded once.

        Raises:
            PalimpsestError: no text at all.
        """
        texts = named(texts, self.name)
        distinct = list(dict.fromkeys(texts))
        parts = [self.text_features(ids) for ids in self.tokens(distinct).split(micro)]
        place = {text: i for i, text in enumerate(distinct)}
        return torch.cat(parts)[[place[text] for text in texts]]


def shared(
    model: Editable, encoder: ContrastiveEncoder, kind: str, reads: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return the matrices of one tower of a CLIP that another model reads, by name.

    Args:
        model: whose encoder the tower is said to be.
        encoder: the CLIP.
        kind: `text` or `vision`.
        reads: whether the model reads the parameter of that name.

    Raises:
        PalimpsestError: the model's encoder is not this CLIP's tower.
    """
    found = {n: p for n, p in encoder.matrices(kind).items() if reads(n)}
    wrong = [n for n in found if not same_base(encoder.fingerprint(n), model.fingerprint(n))]
    if wrong or not found:
        raise PalimpsestError(
            f"the {kind} encoder of {model.name!r} is not the {kind} tower of the CLIP "
            f"{encoder.name!r} ({wrong[0] if wrong else 'no parameter of one name'} differs); "
            "name the CLIP that it is with --clip"
        )
    return found


def _full(features: Tensor) -> Tensor:
    """Return features in float32 at least: products of halves are too coarse to rank by."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
