"""AlexNet's features, by the names of torchvision's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import digest
from palimpsest.judge import Counting
from palimpsest.judge.beside import Beside
from palimpsest.models.devices import usable
from palimpsest.patch.tensor_files import checked_tensor, read_weights

WEIGHTS = "torchvision's weights of AlexNet, alexnet-owt-7be5be79.pth"
"""What the file is called where torchvision's are downloaded from."""
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

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (n, 3, h, w) in [0, 1], of ImageNet's mean and spread → five maps, (n, c, h, w)."""
        x, maps = (images.to(self.mean) - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in AFTER:
                maps.append(x)
        return maps


class OnAlexNet(Beside):
    """A measure of pictures beside others on AlexNet's features, whose weights are a person's."""

    name: str
    """By which it is asked for."""

    def __init__(self, net: AlexNet, weights: str = "") -> None:
        self.net, self.weights = net.eval().requires_grad_(False), weights

    @property
    def spec(self) -> str:
        """The net, and a digest of its weights."""
        return f"AlexNet {self.weights}".strip()

    @classmethod
    def open(cls, counting: Counting) -> Any:
        """Open it with the weights of a file.

        Raises:
            PalimpsestError: there is no such file, or AlexNet's weights are not in it.
        """
        path, net = counting.file(cls.name, WEIGHTS), AlexNet()
        found, _ = read_weights(path)
        own = net.state_dict()
        if missing := [key for key in own if key not in found]:
            raise PalimpsestError(f"{path}: {missing[0]} is missing; take {WEIGHTS}")
        for key, tensor in own.items():
            own[key] = checked_tensor(f"{path}: {key}", found[key], tensor.shape).float()
        net.load_state_dict(own)
        return cls(net.to(usable(counting.device)), digest(path)[:8])
