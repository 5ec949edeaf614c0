"""The part of the text space that a set of prompts leaves free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def null_space(rows: Tensor, tolerance: float) -> Tensor:
    """Return (nullity, width) orthonormal rows S with rows @ Sᵀ = 0, by SVD in float64 on the CPU.

    Args:
        rows: (n, width).
        tolerance: singular values below this share of the largest count as zero.
    """
    _, sizes, vectors = torch.linalg.svd(rows.detach().cpu().double())
    rank = int((sizes > tolerance * sizes[0]).sum())
    return vectors[rank:]


def most(width: int, window: int) -> int:
    """Return the most prompts besides the empty one that leave a dimension free.

    All prompts share their begin token, so each further one takes a window less one: n of them
    leave width − (window + (window − 1)·n). For Stable Diffusion 1.x that is 768 − (77 + 76·n),
    which is 7 at n = 9 and none from 10.
    """
    return (width - window - 1) // (window - 1)
