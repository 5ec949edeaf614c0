"""What the cross-attention looks at: the probabilities of chosen tokens, as they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import interpolate

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion


class _AllSeen(Exception):  # noqa: N818 - a signal, not an error
    """Every layer's attention is recorded."""


@contextmanager
def cross_attention(
    model: Diffusion, wanted: Tensor, *, alone: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Record softmax(QKᵀ/√d) of every cross-attention layer, for some tokens, with gradient.

    Hooks read the queries and keys that a layer computes anyway, so the prediction itself is what
    it is without them, whatever computes the attention and whichever weights lie over the model.

    Args:
        model: the model or a view of it, such as a student.
        wanted: (n, window) or (1, window), true at the token positions to record.
        alone: nothing but the attention is wanted, so the prediction is broken off, and the block
            left, once the last layer has attended.

    Yields:
        Layer name → (n, heads, pixels, k) probabilities of the latest prediction, in float32. k is
        the largest number of wanted tokens of one prompt; a prompt with fewer has zeros at its end.

    Raises:
        PalimpsestError: the U-Net has no cross-attention.
    """
    layers = model.sites.attention
    if not layers:
        raise PalimpsestError(f"{model.name!r} has no cross-attention, so there is none to steer")
    maps: dict[str, Tensor] = {}

    def seen(name: str, A: Tensor) -> None:
        maps[name] = A
        if alone and len(maps) == len(layers):
            raise _AllSeen

    with ExitStack() as hooks, suppress(_AllSeen):
        for name, layer in layers.items():
            for hook in _hooks(layer, wanted, partial(seen, name)):
                hooks.callback(hook.remove)
        yield maps


def _hooks(layer: Attention, wanted: Tensor, seen: Callable[[Tensor], None]) -> Iterator[Any]:
    """Hook a layer's two projections, and the layer, whose end finds both done."""
    order = wanted.int().argsort(dim=1, descending=True, stable=True)
    index = order[:, : int(wanted.sum(1).max())]  # the wanted positions of each prompt come first
    valid = wanted.gather(1, index)
    latest: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        return lambda module, args, out: latest.__setitem__(key, out)

    def record(*_: Any) -> None:
        q, k = (_heads(latest.pop(key), layer.heads) for key in "qk")
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        shape = (len(q), layer.heads, q.shape[2], index.shape[1])
        chosen = index.to(q.device)[:, None, None].expand(shape)
        seen(scores.softmax(-1).gather(-1, chosen) * valid.to(q)[:, None, None])

    yield layer.to_q.register_forward_hook(keep("q"))
    assert layer.to_k is not None  # cross-attention always has keys
    yield layer.to_k.register_forward_hook(keep("k"))
    yield layer.register_forward_hook(record)


def _heads(projected: Tensor, heads: int) -> Tensor:
    """(n, length, width) to (n, heads, length, width/heads), in float32."""
    return torch.stack(projected.float().chunk(heads, -1), 1)


def shrunk(masks: Tensor, A: Tensor) -> Tensor:
    """(n, 1, pixels, 1) the masks at a layer's resolution: the white share of each of its pixels.

    Args:
        masks: (n, 1, height, width) in [0, 1].
        A: (n, heads, pixels, tokens) of that layer, over a square of pixels.
    """
    side = round(A.shape[2] ** 0.5)
    return interpolate(masks, (side, side), mode="area").flatten(2).transpose(1, 2)[:, None]


def end_of_text(model: Diffusion, ids: Tensor) -> Tensor:
    """Where token ids say `<|endoftext|>`, which Stable Diffusion 1.x also pads with."""
    return ids.eq(model.text.end)


def word_positions(model: Diffusion, prompt: str, words: str) -> Tensor:
    """(window,) true at every token of every occurrence of `words`.

    Raises:
        PalimpsestError: the prompt does not fit the window, or does not contain the words.
    """
    if model.text.overlong([prompt]):
        raise PalimpsestError(
            f"the prompt {prompt!r} is longer than the text encoder's window of "
            f"{model.text.window} tokens; shorten it"
        )
    positions = torch.zeros(model.text.window, dtype=torch.bool)
    positions[model.text.span(prompt, words)] = True
    return positions
