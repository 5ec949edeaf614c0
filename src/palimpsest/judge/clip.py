"""CLIP as a judge: how well a picture fits its own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from palimpsest.judge.classifier import resized
from palimpsest.types import Spec


@dataclass
class Clip:
    """A CLIP model with its tokenizer; pictures are resized to what it was trained on."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: Sequence[float]
    """Mean that its pictures are normalised by, per channel."""
    std: Sequence[float]
    """Standard deviation likewise."""
    spec: Spec

    @classmethod
    def load(cls, name: Path | str, device: str = "cpu") -> Clip:
        """Load a Transformers folder or a Hub id."""
        from transformers import AutoConfig, CLIPImageProcessorPil

        model = CLIPModel.from_pretrained(name).to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
        processor = CLIPImageProcessorPil.from_pretrained(name)
        size = int(AutoConfig.from_pretrained(name).vision_config.image_size)
        title = "world CLIP" if isinstance(name, Path) else f"CLIP {name}"
        return cls(
            model,
            CLIPTokenizer.from_pretrained(name),
            processor.image_mean,
            processor.image_std,
            Spec(title, "1", size),
        )

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] → (n, d) features of length one."""
        size, parts = self.spec.resolution, []
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        for batch in images.split(128):
            x = ((resized(batch, size) - mean) / std).to(self.model.device)
            pooled = self.model.vision_model(pixel_values=x).pooler_output
            parts.append(F.normalize(self.model.visual_projection(pooled), dim=-1).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) features of length one, each distinct text encoded once."""
        distinct = list(dict.fromkeys(texts))
        ids = self.tokenizer(
            distinct,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            return_tensors="pt",
        ).input_ids.to(self.model.device)
        pooled = torch.cat(
            [self.model.text_model(input_ids=part).pooler_output for part in ids.split(128)]
        )
        features = F.normalize(self.model.text_projection(pooled), dim=-1).cpu()
        place = {text: i for i, text in enumerate(distinct)}
        return features[[place[text] for text in texts]]

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) cosine of each picture with its own text, −1 to 1."""
        return (self.images(images) * self.texts(texts)).sum(-1)

    def nearest(self, name: str, candidates: Sequence[str]) -> str:
        """The candidate whose text feature is most like that of `name`."""
        features = self.texts([name, *candidates])
        return candidates[int((features[1:] @ features[0]).argmax())]
