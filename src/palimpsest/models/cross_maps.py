"""Where a U-Net looks: the probabilities of its cross-attention while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


@contextmanager
def cross_maps(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the maps of every cross-attention layer that computes, in order.

    The layer itself runs as it always does; its map is worked out again from the same queries and
    keys, with gradient, under whatever weights are laid over it.

    Yields:
        A list that grows by one (n, heads, pixels, window) tensor a layer.
    """
    maps: list[Tensor] = []

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        assert isinstance(layer, Attention)
        x = args[0] if args else kwargs["hidden_states"]
        text = kwargs["encoder_hidden_states"]
        assert layer.to_k is not None  # as it is in layers that read no text
        q, k = (layer.head_to_batch_dim(t) for t in (layer.to_q(x), layer.to_k(text)))
        maps.append(layer.get_attention_scores(q, k).unflatten(0, (len(x), layer.heads)))

    handles = [
        module.register_forward_hook(hook, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and isinstance(module, Attention)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
