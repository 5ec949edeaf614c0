"""Rows of a batch that do not depend on their neighbours.

What a CPU's libraries make of a row hangs, in its last bits, on how many rows they are given with
it, since they choose how to multiply by the shape; what is in the other rows changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALL, MANY, FEW = 256, 8, 2
"""Latents of up to so many places are computed 8 rows a call on the CPU, others 2: a picture with
its guidance. The larger ones gain nothing from company."""


def rows_a_call(x: Tensor, places: Sequence[int] = ()) -> int | None:
    """Return how many rows a network is given at once; None where that is left to the device.

    Args:
        x: what it is given.
        places: height and width of a latent, if x is something else.
    """
    height, width = places or x.shape[-2:]
    if x.device.type != "cpu":
        return None
    return MANY if height * width <= SMALL else FEW


def in_calls(call: Callable[..., Tensor], rows: int | None, *args: Any) -> Tensor:
    """Return `call(*args)`, computed in calls of exactly so many rows.

    Args:
        call: maps n rows of each argument to n rows.
        rows: how many; the last call is filled up with its last row. None makes one call of all.
        args: tensors, or what is indexed like one, of n rows each; n is at least 1.
    """
    n = len(args[0])
    if rows is None or n == rows:
        return call(*args)
    starts = torch.arange(-(-n // rows) * rows).clamp(max=n - 1).split(rows)
    return torch.cat([call(*(arg[index] for arg in args)) for index in starts])[:n]
