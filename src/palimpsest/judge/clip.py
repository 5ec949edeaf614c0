"""CLIP as a judge: how well a picture fits its own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.data.images import resized
from palimpsest.methods import Spec
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.loading import load_clip

WORLD = "world CLIP"
"""What the world's own is called."""


@dataclass
class Clip:
    """A CLIP that looks; pictures are resized to what it was trained on."""

    encoder: ContrastiveEncoder
    spec: Spec

    @classmethod
    def load(cls, name: Path | str, device: str = "cpu") -> Clip:
        """Load `world`, a Transformers folder or a Hub id.

        Raises:
            PalimpsestError: there is none.
        """
        encoder = load_clip(str(name), device=device)
        title = WORLD if isinstance(name, Path) or name == "world" else f"CLIP {name}"
        return cls(encoder, Spec(title, "1", encoder.side))

    def images(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] → (n, d) features of length one."""
        side = self.spec.resolution
        parts = [self.encoder.images(resized(batch, side)).cpu() for batch in images.split(128)]
        return torch.cat(parts)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) features of length one, each distinct text encoded once."""
        return self.encoder.texts(texts).cpu()

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) cosine of each picture with its own text, −1 to 1."""
        return (self.images(images) * self.texts(texts)).sum(-1)

    def nearest(self, name: str, candidates: Sequence[str]) -> str:
        """The candidate whose text feature is most like that of `name`."""
        features = self.texts([name, *candidates])
        return candidates[int((features[1:] @ features[0]).argmax())]
