"""Trade time for memory: forget what a forward pass keeps, and compute it again when it is needed.

Diffusers' own gradient checkpointing would compute with the module's weights again, which are no
longer those of the view under training when the backward pass comes. Here each block takes the
weights of its forward pass along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def forgetful(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let blocks keep their inputs alone; the backward pass, then or later, computes the rest."""
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _forgetful(block)
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            _put_back(block, own)


def _forgetful(block: nn.Module) -> Callable[..., Any]:
    """Return the block's forward pass, whose insides are not kept."""
    from torch.utils._pytree import tree_flatten, tree_unflatten

    inner = block.forward

    def again(weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = vars(block).get("forward")  # at a later time there may be none
        block.forward = inner
        try:
            return torch.func.functional_call(block, weights, args, kwargs)
        finally:
            _put_back(block, now)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        # one by one: what is inside a dictionary would be held as long as the graph is
        leaves, form = tree_flatten((dict(block.named_parameters()), args, kwargs))
        return _again(lambda *own: again(*tree_unflatten(own, form)), *leaves)

    return forward


def _put_back(block: nn.Module, forward: Any) -> None:
    """Give a block the forward pass that it had of its own, or let its class's show again."""
    del block.forward
    if forward is not None:
        block.forward = forward


def row_by_row(
    call: Callable[..., Tensor], blocks: Sequence[nn.Module], *inputs: Any, kept: bool = True
) -> Tensor:
    """Return `call(*inputs)` row by row, of which the backward pass computes one at a time.

    The gradient is that of the whole batch: only when it is computed differs, and no more than one
    row's insides exist at once.

    Args:
        call: maps n rows of each input to n rows.
        blocks: what is computed block by block inside.
        inputs: tensors, or what is indexed like one, of n rows each.
        kept: whether one row alone may keep the inputs of its blocks; False computes all of it
            again.
    """

    def one(*row: Any) -> Tensor:
        with forgetful(blocks):
            return call(*row)

    n = len(inputs[0])
    if n == 1 and kept:
        return one(*inputs)
    rows = ([each[i : i + 1] for each in inputs] for i in range(n))
    return torch.cat([_again(one, *row) for row in rows])


def _again(call: Callable[..., Any], *args: Any) -> Any:
    """Call it so that nothing inside is kept; no network here draws at random."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=False)
