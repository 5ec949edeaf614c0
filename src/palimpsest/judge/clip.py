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
from palimpsest.world import assets

WORLD = "world CLIP"
"""What the world's own is called."""


@dataclass
class Clip:
    """A CLIP that looks; pictures are resized to what it was trained on."""

    encoder: ContrastiveEncoder
    spec: Spec
    ref: str | None = None
    """What loads it again: `world`, a folder or a Hub id; None of one put together in Python."""

    @classmethod
    def load(cls, name: Path | str, device: str = "cpu") -> Clip:
        """Load `world`, a Transformers folder or a Hub id.

        Raises:
            PalimpsestError: there is none.
        """
        encoder, path = load_clip(str(name), device=device), Path(name)
        if name in ("world", assets.clip()):
            return cls(encoder, Spec(WORLD, "1", encoder.side), "world")
        ref = str(path.resolve()) if path.is_dir() else str(name)
        return cls(encoder, Spec(f"CLIP {name}", "1", encoder.side), ref)

    def images(self, images: Tensor) -> Tensor:
        """Map (n, 3, h, w) in [0, 1] → (n, d) features of length one."""
        side = self.spec.resolution
        parts = [self.encoder.images(resized(batch, side)).cpu() for batch in images.split(128)]
        return torch.cat(parts)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return (n, d) features of length one, each distinct text encoded once."""
        return self.encoder.texts(texts).cpu()

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return (n,) cosine of each picture with its own text, −1 to 1."""
        return (self.images(images) * self.texts(texts)).sum(-1)

    def nearest(self, name: str, candidates: Sequence[str]) -> str:
        """Return the candidate whose text feature is most like that of `name`."""
        features = self.texts([name, *candidates])
        return candidates[int((features[1:] @ features[0]).argmax())]
