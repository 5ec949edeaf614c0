"""Networks of judges and measures, the one file here that loads torch when it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from palimpsest.core.lazily import no_grad

if TYPE_CHECKING:
    from torch import Tensor

AFTER = (1, 4, 7, 9, 11)
"""Where the five layers of features are taken: behind each ReLU."""


class AlexNet(nn.Module):
    """The five convolutions of AlexNet (Krizhevsky 2014, arXiv:1404.5997), frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), relu(), pool()),
            *(nn.Conv2d(64, 192, 5, padding=2), relu(), pool()),
            *(nn.Conv2d(192, 384, 3, padding=1), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1), relu()),
            *(nn.Conv2d(256, 256, 3, padding=1), relu()),
        )
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @no_grad
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (n, 3, h, w) in [0, 1], of ImageNet's mean and spread → five maps, (n, c, h, w)."""
        x, maps = (images.to(self.mean) - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in AFTER:
                maps.append(x)
        return maps


class Network(nn.Module):
    """Four halving blocks; each head reads the flattened map and the mean of every block.

    Shapes of objects live in the map, textures of styles in the means.
    """

    def __init__(self, heads: dict[str, tuple[str, ...]], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.ReLU(),
            )
            for before, after in zip((3, *widths), widths, strict=False)
        )
        self.widths = widths
        size = widths[-1] * 16 + sum(widths)
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(size, len(classes)) for kind, classes in heads.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        """Map (n, 3, 64, 64) in [0, 1] → (n, width)."""
        x, means = 2 * images - 1, []
        for block in self.blocks:
            x = block(x)
            means.append(x.mean((2, 3)))
        return torch.cat([x.flatten(1), *means], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (n, 3, 64, 64) in [0, 1] → logits per head."""
        features = self.features(images)
        return {kind: head(features) for kind, head in self.heads.items()}
