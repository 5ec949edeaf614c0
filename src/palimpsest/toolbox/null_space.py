"""The part of the text space that a set of prompts leaves free."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.models.diffusion import Diffusion


def null_space(rows: Tensor, tolerance: float) -> Tensor:
    """Return (nullity, width) orthonormal rows S with rows @ Sᵀ = 0, by SVD in float64 on the CPU.

    Args:
        rows: (n, width).
        tolerance: singular values below this share of the largest count as zero.
    """
    _, sizes, vectors = torch.linalg.svd(rows.detach().cpu().double())
    rank = int((sizes > tolerance * sizes[0]).sum())
    return vectors[rank:]


def capacity(model: Diffusion, n: int) -> int:
    """Return the dimensions left to shift a concept in while n prompts and the empty one are held.

    All prompts share their begin token, so each further one takes a window less one: for Stable
    Diffusion 1.x 768 − (77 + 76·n), which is 7 at n = 9 and none from 10.
    """
    return free(model.rows([""]).shape[-1], model.text.window, n)


def free(width: int, window: int, n: int) -> int:
    """Return the same from the text embedding's width and the prompts' window."""
    return max(0, width - (window + (window - 1) * n))


def most(width: int, window: int) -> int:
    """Return the most prompts besides the empty one that leave a dimension free."""
    return (width - window - 1) // (window - 1)
