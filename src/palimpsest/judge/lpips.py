"""How unlike two pictures look."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palimpsest.judge.alexnet import OnAlexNet
from palimpsest.patch.tensor_files import read_pickle

if TYPE_CHECKING:
    from torch import Tensor


class LPIPS(OnAlexNet):
    """The learned perceptual distance of each picture from the unedited model's.

    Zhang et al. 2018, eq. 1, with AlexNet and the linear heads (version 0.1) that torchmetrics
    ships, at the pictures' own size.

    Traps: values of other sizes and other nets are not comparable, so that the spec names both.
    """

    name = "lpips"
    title = "LPIPS"
    meaning = (
        "learned perceptual distance of each picture from the unedited model's of the same prompt "
        "and seed. Low is gentle over the others, over the concept high is "
        "thorough; 0 is the same picture."
    )

    @cached_property
    def heads(self) -> list[Tensor]:
        """Five (1, channels, 1, 1) weights, none below 0."""
        package = find_spec("torchmetrics")
        assert package is not None
        assert package.origin is not None
        file = Path(package.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
        found = read_pickle(file)
        return [found[f"lin{i}.model.1.weight"].to(self.net.mean) for i in range(5)]

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) distances."""
        parts = [
            (head * (_unit(a) - _unit(b)) ** 2).sum(1).mean((1, 2))  # eq. 1
            for head, a, b in zip(self.heads, self.net(ours), self.net(theirs), strict=True)
        ]
        return torch.stack(parts).sum(0)


def _unit(maps: Tensor) -> Tensor:
    """Bring the channels at each place, (n, c, h, w), to length one."""
    return maps / (1e-8 + maps.square().sum(1, keepdim=True)).sqrt()
