"""AlexNet's features, by the names of torchvision's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import digest
from palimpsest.judge import Counting
from palimpsest.judge.beside import Beside
from palimpsest.models.devices import usable
from palimpsest.patch.tensor_files import checked_tensor, read_weights

if TYPE_CHECKING:
    from palimpsest.judge.networks import AlexNet

WEIGHTS = "torchvision's weights of AlexNet, alexnet-owt-7be5be79.pth"
"""What the file is called where torchvision's are downloaded from."""


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
        from palimpsest.judge.networks import AlexNet

        path, net = counting.file(cls.name, WEIGHTS), AlexNet()
        found, _ = read_weights(path)
        own = net.state_dict()
        if missing := [key for key in own if key not in found]:
            raise PalimpsestError(f"{path}: {missing[0]} is missing; take {WEIGHTS}")
        for key, tensor in own.items():
            own[key] = checked_tensor(f"{path}: {key}", found[key], tensor.shape).float()
        net.load_state_dict(own)
        return cls(net.to(usable(counting.device)), digest(path)[:8])
