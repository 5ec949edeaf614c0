"""How alike two pictures are in structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.judge.beside import Beside

if TYPE_CHECKING:
    from torch import Tensor


class SSIM(Beside):
    """The structural similarity of each picture and the unedited model's of the same prompt.

    Wang et al. 2004, eq. 13, as torchmetrics computes it.

    Traps: it compares pixel by pixel, so that the same thing at another place counts as unlike.
    """

    title = "SSIM"
    range = (-1.0, 1.0)
    spec = "torchmetrics, Gaussian window of 11 px, σ 1.5"
    meaning = (
        "structural similarity of each picture and the unedited model's of the same prompt and "
        "seed, −1 to 1. High is gentle over the others, over the concept low is "
        "thorough; 1 is the same picture."
    )

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) similarities."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        return ssim(ours, theirs, data_range=1.0, reduction="none")  # type: ignore[return-value]
