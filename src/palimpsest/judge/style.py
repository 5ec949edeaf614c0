"""How unlike two pictures are in style."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from palimpsest.judge.alexnet import OnAlexNet

if TYPE_CHECKING:
    from torch import Tensor


class Style(OnAlexNet):
    """The Gram style loss of each picture and the unedited model's.

    Gatys et al. 2016, eq. 3 to 5, on AlexNet's five layers, each of weight 1/5. Theirs are five of
    VGG-19, so that values are not comparable with the paper's.

    Traps: where things are does not count at all, and the loss grows with contrast.
    """

    name = "style"
    title = "style loss (Gram)"
    meaning = (
        "distance of the correlations of features of each picture from the unedited model's of the "
        "same prompt and seed. Low is gentle over the others, over the concept high is "
        "thorough."
    )

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) losses."""
        parts = []
        for a, b in zip(self.net(ours), self.net(theirs), strict=True):
            n, m = a.shape[1], a.shape[2] * a.shape[3]
            away = (_gram(a) - _gram(b)).square().sum((1, 2))
            parts.append(away / (4 * n**2 * m**2))  # eq. 4
        return torch.stack(parts).mean(0)  # eq. 5, with w = 1/5


def _gram(maps: Tensor) -> Tensor:
    """Return (n, c, c) products of the maps of all channels, (n, c, h, w)."""
    rows = maps.flatten(2)
    return rows @ rows.transpose(1, 2)  # eq. 3
