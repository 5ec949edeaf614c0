"""How alike two pictures are in structure, on five scales."""

from __future__ import annotations

from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge.beside import Beside

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

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) similarities.

        Raises:
            PalimpsestError: the pictures are too small.
        """
        from torchmetrics.functional.image import (
            multiscale_structural_similarity_index_measure as ms_ssim,
        )

        height, width = ours.shape[-2:]
        if min(height, width) < LEAST:
            raise PalimpsestError(
                f"MS-SSIM halves pictures four times and needs {LEAST} px; these are "
                f"{width} × {height}: take ssim"
            )
        return ms_ssim(ours, theirs, data_range=1.0, reduction="none")  # type: ignore[return-value]
