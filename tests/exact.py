"""Equality to the bit, and the least that breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether the same names have tensors of the same type, shape and bits."""
    return a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same type, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def nudged(tensor: Tensor) -> Tensor:
    """Return a copy whose first entry is one unit in the last place away."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    copy.view(-1).view(torch.uint8)[0] ^= 1  # the lowest bit of a little-endian number
    return copy


def nearly(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield mappings that differ from `tensors` in one last bit, or by one missing name.

    Of many names about eight are tried, the first and those spread over the rest.
    """
    for name in [*tensors][:: max(1, len(tensors) // 8)]:
        yield {**tensors, name: nudged(tensors[name])}
        yield {other: tensor for other, tensor in tensors.items() if other != name}


def falsify(folder: Path) -> None:
    """Reverse every matrix under training in the checkpoints of a folder, and add a tenth."""
    files = [*folder.glob("*.checkpoint")]
    assert files
    for file in files:
        state = torch.load(file, weights_only=True)
        matrices = {name: p for name, p in state["parameters"].items() if p.ndim > 1}
        state["parameters"] |= {n: p.flip(tuple(range(p.ndim))) + 0.1 for n, p in matrices.items()}
        torch.save(state, file)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
