"""How alike two pictures are in structure, on five scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge.beside import Beside
from palimpsest.methods import Seen

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 176
"""Pixels of a side that torchmetrics asks for: 16 times the window's 11."""


class MSSSIM(Beside):
    """The multi-scale structural similarity of each picture and the unedited model's.

    Wang et al. 2003, eq. 7, as torchmetrics computes it: five scales, each half of the one before.

    Traps: as of SSIM; and small pictures cannot be halved four times.
    """

    title = "MS-SSIM"
    range = (0.0, 1.0)
    spec = "torchmetrics, five scales, Gaussian window of 11 px, σ 1.5"
    meaning = (
        "structural similarity on five scales of each picture and the unedited model's of the same "
        "prompt and seed, 0 to 1. High is gentle over the others, over the concept low is "
        "thorough; 1 is the same picture."
    )

    def refuse(self, seen: Seen) -> None:
        """Refuse pictures that are too small to be halved, by the first of them.

        Raises:
            PalimpsestError: saying their size.
        """
        _refuse_small(seen.pictures(seen.prompts[:1]))

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) similarities.

        Raises:
            PalimpsestError: the pictures are too small.
        """
        from torchmetrics.functional.image import (
            multiscale_structural_similarity_index_measure as ms_ssim,
        )

        _refuse_small(ours)
        return ms_ssim(ours, theirs, data_range=1.0, reduction="none")  # type: ignore[return-value]


def _refuse_small(pictures: Tensor) -> None:
    height, width = pictures.shape[-2:]
    if min(height, width) < LEAST:
        raise PalimpsestError(
            f"MS-SSIM halves pictures four times and needs {LEAST} px; these are "
            f"{width} × {height}: take ssim"
        )
