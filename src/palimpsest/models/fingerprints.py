"""Fingerprints of a model's weights, kept as long as the files that these were read of stay."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.hashes import Files
from palimpsest.patch.patch import fingerprint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Fingerprints:
    """What was computed of the weights of some files, in this process or in an earlier one.

    A kept fingerprint is taken of a tensor alone whose bytes have the CRC-32 that they had then: a
    weight that was changed in memory after it was read is none of its files any more.
    """

    what: ClassVar = "fingerprints, 1"
    """Names how they are computed: another way takes another name."""

    files: Files | None = None
    """What the weights were read of; None keeps nothing."""
    known: dict[str, list[Any]] = field(default_factory=dict)
    """Parameter and type → CRC-32 and fingerprint."""
    more: bool = False
    """Whether there are some that are not kept yet."""

    def __post_init__(self) -> None:
        found = self.files.recall(self.what) if self.files else None
        entries = found.items() if isinstance(found, Mapping) else ()
        self.known |= {name: e for name, e in entries if isinstance(e, list) and len(e) == 2}

    def of(self, name: str, tensor: Tensor) -> str:
        """Return a tensor's fingerprint.

        Args:
            name: its parameter's.
            tensor: of any shape and type, on any device.
        """
        if self.files is None or not self.files.large:
            return fingerprint(tensor)
        key, check = f"{name} {tensor.dtype}", _check(tensor)
        kept = self.known.get(key, [None, ""])
        if kept[0] != check or not isinstance(kept[1], str):
            kept, self.more = [check, fingerprint(tensor)], True
            self.known[key] = kept
        return kept[1]

    def keep(self) -> None:
        """Keep them for later processes."""
        if self.files is not None and self.more:
            self.files.keep(self.what, self.known)
            self.more = False


def _check(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes, which takes a tenth of a fingerprint's time."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
