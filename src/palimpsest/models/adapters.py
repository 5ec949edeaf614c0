"""Low-rank adapters beside a network's layers, opened row by row.

A weight has one value for a whole batch; an adapter that lies beside it can have another scale for
every row, so that pictures of different prompts are made together: y = W·x + up·(s ⊙ (down·x)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.errors import PalimpsestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Gate:
    """How far the adapters are open."""

    scale: Tensor | None = None
    """(n, K), a row for each row of the batch; None is wide open."""


@contextmanager
def adapted(
    components: Mapping[str, torch.nn.Module],
    adapters: Mapping[str, tuple[Tensor, Tensor]],
    gate: Gate,
) -> Iterator[None]:
    """Let adapters compute beside their layers; they are gone again in the end.

    Args:
        components: modules by the first part of a canonical name, such as `unet`.
        adapters: (out, K) up and (K, in) down by the canonical name of the layer's weight.
        gate: what opens them, read whenever a layer computes.

    Raises:
        PalimpsestError: an adapter of a layer that is not there, or is no linear or convolution.
    """
    with ExitStack() as stack:
        stack.callback(setattr, gate, "scale", None)
        for name, (up, down) in adapters.items():
            component, _, rest = name.partition(".")
            layer = _layer(components[component], rest.removesuffix(".weight"), name)
            hook = _beside(layer, up, down, gate)
            stack.enter_context(layer.register_forward_hook(hook))
        yield


def _layer(module: torch.nn.Module, path: str, name: str) -> torch.nn.Linear | torch.nn.Conv2d:
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        layer = None
    layer = getattr(layer, "base_layer", layer)  # PEFT's LoRA lies around it
    if isinstance(layer, torch.nn.Linear) or (
        isinstance(layer, torch.nn.Conv2d) and layer.groups == 1
    ):
        return layer
    raise PalimpsestError(f"{name}: no linear layer or plain convolution that an adapter can join")


def _beside(
    layer: torch.nn.Linear | torch.nn.Conv2d, up: Tensor, down: Tensor, gate: Gate
) -> Callable[[torch.nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a forward hook that adds the adapter to what the layer gives."""
    up, down = (t.to(layer.weight.device, layer.weight.dtype) for t in (up, down))

    if isinstance(layer, torch.nn.Conv2d):
        kernel = down.reshape(len(down), *layer.weight.shape[1:])
        own = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        narrow = partial(torch.nn.functional.conv2d, weight=kernel, **own)
        widen = partial(torch.nn.functional.conv2d, weight=up[:, :, None, None])
    else:
        narrow, widen = (partial(torch.nn.functional.linear, weight=w) for w in (down, up))

    def hook(_: torch.nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        z = narrow(torch.as_tensor(args[0]))
        if gate.scale is not None:
            s, ones = gate.scale.to(z.dtype), [1] * (z.ndim - 2)
            last = not isinstance(layer, torch.nn.Conv2d)  # where the channels are
            z = z * (s.reshape(len(s), *ones, -1) if last else s.reshape(len(s), -1, *ones))
        return out + widen(z)

    return hook
