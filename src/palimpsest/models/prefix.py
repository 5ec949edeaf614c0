"""Prompts with soft tokens in front: vectors that stand for no word of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.models.stable_diffusion import Conditioning, Diffusion


def embed_prefixed(model: Diffusion, prompts: Sequence[str], prefix: Tensor) -> Conditioning:
    """Encode prompts with vectors set between their begin token and their first word.

    Gradients reach the vectors, and through a view of a model also the shifts under training. A
    prompt that no longer fits the window is cut at its end.

    Args:
        model: the model, or a view of one.
        prompts: n prompts.
        prefix: (k, width) vectors for all prompts, or (n, k, width), each prompt's own.

    Returns:
        The n embedded prompts.
    """
    ids, n = model.tokens(prompts), len(prompts)
    k = prefix.shape[-2]
    vectors = prefix.expand(n, k, -1).flatten(0, 1)
    # a table of just the tokens in use, the vectors behind them: theirs is n·k rows, not 49,408
    used, place = ids.unique(return_inverse=True)
    known = model.weight(model.token_table)[used]
    own = len(used) + torch.arange(n * k, device=ids.device).reshape(n, k)
    longer = torch.cat([place[:, :1], own, place[:, 1:]], 1)[:, : model.window]
    end_id: Any = model.tokenizer.eos_token_id
    end = torch.eq(ids, end_id).int().argmax(1)  # the first one: the others pad
    lost = end + k >= model.window
    longer[lost, -1] = place[lost, end[lost]]
    table = torch.cat([known.to(vectors.dtype), vectors.to(known.device)])
    return model.overlaid(lambda: {model.token_table: table}).embed_tokens(longer)


def random_words(model: Diffusion, shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """(*shape, width) embeddings of words drawn from the whole vocabulary, in float32."""
    table = model.weight(model.token_table)
    return table[torch.randint(len(table), shape, generator=g).to(table.device)].detach().float()
