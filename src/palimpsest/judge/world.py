"""The world's judge: one small convolutional network with a head per kind of concept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object
from palimpsest.core.kinds import NONE
from palimpsest.core.lazily import no_grad
from palimpsest.core.typed import build
from palimpsest.data.images import resized
from palimpsest.judge import Looking, Opening
from palimpsest.methods import Reading, Spec
from palimpsest.models.devices import usable
from palimpsest.models.rows import in_calls
from palimpsest.patch.tensor_files import UNREADABLE, checked_tensor, read_tensors
from palimpsest.world import assets

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.judge.networks import Network


@dataclass(frozen=True)
class Header:
    """What a judge's file says besides its weights."""

    heads: dict[str, tuple[str, ...]]
    widths: tuple[int, ...]
    version: str


class Classifier(Looking):
    """Names what pictures of the built-in world show, one concept of each kind.

    It is a trained `Network` with the names of its classes; *none of these* is one of each head.
    """

    ref: str | None = None
    """What loads it again: `world` or a file; None of a judge that was put together in Python."""
    opening = None
    """It names the world's concepts, whatever it is opened for."""

    def __init__(
        self, network: Network, heads: dict[str, tuple[str, ...]], spec: Spec, device: str = "cpu"
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.heads, self.spec, self.device = heads, spec, device

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Kind → the names that its head can give."""
        return {kind: tuple(n for n in names if n != NONE) for kind, names in self.heads.items()}

    @classmethod
    def open(cls, opening: Opening) -> Classifier:
        """Open the shipped judge, or one from a file, such as `world:my-judge.safetensors`."""
        return cls.load(Path(opening.ref) if opening.ref else assets.judge(), opening.device)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Classifier:
        """Read a judge from one safetensors file whose header names heads, widths and spec.

        Raises:
            PalimpsestError: there is no such file, or it is not a judge's.
        """
        from palimpsest.judge.networks import Network

        device = usable(device)
        tensors, metadata = read_tensors(path)
        try:
            header = build(Header, parse_object(metadata.get("judge", ""), path))
            with torch.device("meta"):  # so that widths of no sense take no memory
                network = Network(header.heads, header.widths)
            weights = {k: checked_tensor(f"{path}: {k}", t).float() for k, t in tensors.items()}
            network.load_state_dict(weights, assign=True)
        except (*UNREADABLE, ArithmeticError, PalimpsestError) as error:
            why = str(error).split("\n")[0]
            raise PalimpsestError(f"{path}: not a judge's file ({why})") from error
        spec = Spec(name="world judge", version=header.version, resolution=64)
        judge = cls(network, header.heads, spec, device)
        judge.ref = "world" if path.resolve() == assets.judge().resolve() else str(path.resolve())
        return judge

    @no_grad
    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, 64, 64) in [0, 1]."""
        logits = self._each(images, lambda batch: torch.cat([*self.network(batch).values()], 1))
        labels: dict[str, list[str | None]] = {}
        confidence: dict[str, list[float]] = {}
        sizes = [len(names) for names in self.heads.values()]
        for kind, own in zip(self.heads, logits.split(sizes, 1), strict=True):
            best = own.softmax(-1).max(-1)
            seen = zip(best.indices.tolist(), best.values.isfinite().tolist(), strict=True)
            labels[kind] = [self.heads[kind][i] if finite else None for i, finite in seen]
            confidence[kind] = best.values.tolist()
        return Reading(labels, confidence)

    @no_grad
    def features(self, images: Tensor) -> Tensor:
        """Return pooled features, (n, sum of widths): what the world-FID compares."""
        means = sum(self.network.widths)
        return self._each(images, lambda batch: self.network.features(batch)[:, -means:])

    def _each(self, images: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is made of each picture; on the CPU none depends on the others."""

        def call(batch: Tensor) -> Tensor:
            return look(resized(batch.float(), self.spec.resolution).to(self.device)).cpu()

        rows = 16 if str(self.device) == "cpu" else None
        return torch.cat([in_calls(call, rows, batch) for batch in images.split(256)])


def heads_of(domains: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the classes of each head: those of its domain, and *none of these*."""
    return {kind: (*names, NONE) for kind, names in domains.items()}
