"""How much the pixels of a picture attend to chosen tokens of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from torch import Tensor


class _Complete(Exception):  # noqa: N818 - a signal, not an error
    """Every layer's attention is recorded."""


def attention_maps(
    model: Diffusion, x_t: Tensor, t: Tensor, cond: Conditioning, wanted: Tensor
) -> dict[str, Tensor]:
    """Compute softmax(QKᵀ/√d) of every cross-attention layer, at some tokens, with gradient.

    Hooks read the queries and keys that a layer computes anyway, whatever computes its attention
    and whichever weights the model has. The prediction itself is not needed: it is broken off once
    the last layer has attended, and nothing behind that layer is computed.

    Args:
        model: the model or a view of it, such as a student.
        x_t: (n, channels, h, w) noised latents.
        t: (n,) or () times.
        cond: n embedded prompts, or one for all.
        wanted: (n, window) or (1, window), true at the token positions to record.

    Returns:
        Layer name → (n, heads, pixels, k) probabilities in float32. k is the largest number of
        wanted tokens of one prompt; a prompt with fewer has zeros at its end.
    """
    order = wanted.int().argsort(dim=1, descending=True, stable=True)
    index = order[:, : int(wanted.sum(1).max())]  # the wanted positions of each prompt come first
    valid = wanted.gather(1, index)

    def at_wanted(layer: Attention, q: Tensor, k: Tensor) -> Tensor:
        shape = (len(q), layer.heads, q.shape[2], index.shape[1])
        chosen = index.to(q.device)[:, None, None].expand(shape)
        return _logits(q, k).softmax(-1).gather(-1, chosen) * valid.to(q)[:, None, None]

    return _recorded(model, x_t, t, cond, at_wanted)


def logit_differences(
    model: Diffusion, x_t: Tensor, t: Tensor, cond: Conditioning, other: Conditioning
) -> dict[str, Tensor]:
    """Compute Q(K − K')ᵀ/√d of every cross-attention layer, at all tokens, with gradient.

    Args:
        model: the model or a view of it, such as a student.
        x_t: (n, channels, h, w) noised latents.
        t: (n,) or () times.
        cond: n embedded prompts, which Q and K are of.
        other: n embedded prompts that K' is of, token by token in the others' place.

    Returns:
        Layer name → (n, heads, pixels, window) differences of attention logits in float32.
    """
    rows = other.rows(model.sites.sequence)

    def against(layer: Attention, q: Tensor, k: Tensor) -> Tensor:
        assert layer.to_k is not None
        return _logits(q, k - _heads(layer.to_k(rows.to(model.dtype)), layer.heads))

    return _recorded(model, x_t, t, cond, against)


def _recorded(
    model: Diffusion,
    x_t: Tensor,
    t: Tensor,
    cond: Conditioning,
    read: Callable[[Attention, Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return what `read` makes of each layer's queries and keys, (n, heads, length, width)."""
    layers = model.sites.attention
    maps: dict[str, Tensor] = {}

    def attended(name: str, latest: dict[str, Tensor], layer: Attention, *_: Any) -> None:
        maps[name] = read(layer, *(_heads(latest.pop(key), layer.heads) for key in "qk"))
        if len(maps) == len(layers):
            raise _Complete

    with ExitStack() as hooks, suppress(_Complete):
        for name, layer in layers.items():
            latest: dict[str, Tensor] = {}
            for key, projection in (("q", layer.to_q), ("k", layer.to_k)):
                hook = partial(_keep, latest, key)
                hooks.enter_context(projection.register_forward_hook(hook))
            hook = partial(attended, name, latest)  # a layer ends after both of them
            hooks.enter_context(layer.register_forward_hook(hook))
        model.at_once().predict(x_t, t, cond)  # a hook sees every layer once
    return maps


def _keep(latest: dict[str, Tensor], key: str, module: Any, args: Any, out: Tensor) -> None:
    """Keep what a projection gave."""
    latest[key] = out


@contextmanager
def begin_token_held(model: Diffusion) -> Iterator[None]:
    """Let no gradient through the key and the value of the first token, the begin token.

    It concerns every cross-attention layer of the model and of its views. No value changes.
    """

    def hold(module: Any, args: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1].detach(), out[:, 1:]], 1)

    with ExitStack() as hooks:
        for layer in model.sites.attention.values():
            for projection in (layer.to_k, layer.to_v):
                hooks.enter_context(projection.register_forward_hook(hold))
        yield


def _logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


def _heads(projected: Tensor, heads: int) -> Tensor:
    """Split (n, length, width) into (n, heads, length, width/heads), in float32."""
    return torch.stack(projected.float().chunk(heads, -1), 1)


def within(maps: Iterable[Tensor], masks: Tensor | None) -> list[Tensor]:
    """Weigh each pixel's attention by the share of its area that a mask marks white.

    Args:
        maps: (n, heads, pixels, tokens) a layer, over a square of pixels.
        masks: (n, 1, height, width) in [0, 1]; None leaves the maps as they are.
    """
    return [A if masks is None else A * _shrunk(masks, A) for A in maps]


def _shrunk(masks: Tensor, A: Tensor) -> Tensor:
    """Average masks down to a layer's resolution, (n, 1, pixels, 1)."""
    side = round(A.shape[2] ** 0.5)
    return (
        torch.nn.functional.interpolate(masks, (side, side), mode="area")
        .flatten(2)
        .transpose(1, 2)[:, None]
    )


def end_of_text(model: Diffusion, ids: Tensor) -> Tensor:
    """Return where token ids are `<|endoftext|>`, which Stable Diffusion 1.x also pads with."""
    return ids.eq(model.text.end)


def word_positions(model: Diffusion, prompt: str, words: str) -> Tensor:
    """Return (window,) true at every token of every occurrence of `words`.

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
