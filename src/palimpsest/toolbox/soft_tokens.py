"""Soft tokens: vectors in a prompt that stand for no word of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.families.sd import Conditioning, Diffusion

SLOT = "{}"
"""Where the vectors stand in a prompt."""


def embed_soft(model: Diffusion, ids: Tensor, slots: Tensor, vectors: Tensor) -> Conditioning:
    """Encode token ids with vectors in place of some; the tokenizer learns nothing.

    Gradients reach the vectors, and through a view of a model also the shifts under training.

    Args:
        model: the model, or a view of one.
        ids: (n, window) token ids; those at the slots do not matter.
        slots: (n, window) true where vectors stand.
        vectors: (slots that are true, width), row by row, as token embeddings before positions are
            added.
    """

    def put(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[slots] = vectors.to(out)
        return out

    hook = model.text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        return Conditioning(model.embed_tokens(ids).hidden)
    finally:
        hook.remove()


# --- in place of words ---


def embeddings(model: Diffusion, words: str) -> Tensor:
    """(tokens, width) token embeddings of words, in float32.

    Raises:
        PalimpsestError: the words hold no token.
    """
    ids = _ids(model, words)
    if not ids:
        raise PalimpsestError(f"the words {words!r} hold no token")
    return model.weight(model.token_table).detach()[ids].float()


def token_ids(model: Diffusion, prompts: Sequence[str], k: int) -> tuple[Tensor, Tensor]:
    """Token ids of prompts with room for `k` vectors at their `{}`.

    Returns:
        (n, window) ids, and (n, window) true where the vectors stand.

    Raises:
        PalimpsestError: a prompt without exactly one `{}`, or too long for the window.
    """
    begin, end, pad = (
        getattr(model.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    )
    ids = torch.full((len(prompts), model.window), pad)
    slots = torch.zeros(len(prompts), model.window, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.count(SLOT) != 1:
            raise PalimpsestError(f"the prompt {prompt!r} must hold one {SLOT} for the vectors")
        before, after = (_ids(model, text) for text in prompt.split(SLOT))
        line = [begin, *before, *[end] * k, *after, end]
        if len(line) > model.window:
            raise PalimpsestError(
                f"the prompt {prompt!r} with {k} vectors is {len(line)} tokens long; the text "
                f"encoder's window holds {model.window}"
            )
        ids[row, : len(line)] = torch.tensor(line)
        slots[row, 1 + len(before) : 1 + len(before) + k] = True
    return ids.to(model.device), slots.to(model.device)


def embed_vectors(model: Diffusion, prompts: Sequence[str], vectors: Tensor) -> Conditioning:
    """Encode prompts in which vectors stand in place of words.

    Args:
        model: the model, or a view of one.
        prompts: each with one `{}` where the vectors stand.
        vectors: (k, width).
    """
    ids, slots = token_ids(model, prompts, len(vectors))
    return embed_soft(model, ids, slots, vectors.repeat(len(prompts), 1))


def _ids(model: Diffusion, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False).input_ids


# --- in front of words ---


def embed_prefixed(model: Diffusion, prompts: Sequence[str], prefix: Tensor) -> Conditioning:
    """Encode prompts with vectors set between their begin token and their first word.

    A prompt that no longer fits the window is cut at its end.

    Args:
        model: the model, or a view of one.
        prompts: n prompts.
        prefix: (k, width) vectors for all prompts, or (n, k, width), each prompt's own.
    """
    n, k = len(prompts), prefix.shape[-2]
    ids, slots = prefixed_ids(model, prompts, k)
    return embed_soft(model, ids, slots, prefix.expand(n, k, -1).flatten(0, 1))


def prefixed_ids(model: Diffusion, prompts: Sequence[str], k: int) -> tuple[Tensor, Tensor]:
    """Token ids of prompts with room for `k` tokens between the begin token and the first word.

    Returns:
        (n, window) ids, cut at their end where the room takes it, and (n, window) true at the room.
    """
    ids, n = model.tokens(prompts), len(prompts)
    longer = torch.cat([ids[:, :1], ids[:, :1].expand(n, k), ids[:, 1:]], 1)[:, : model.window]
    end_id: Any = model.tokenizer.eos_token_id
    end = torch.eq(ids, end_id).int().argmax(1)  # the first one: the others pad
    longer[end + k >= model.window, -1] = end_id
    slots = torch.zeros_like(longer, dtype=torch.bool)
    slots[:, 1 : k + 1] = True
    return longer, slots


def random_words(model: Diffusion, shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """(*shape, width) embeddings of words drawn from the whole vocabulary, in float32."""
    table = model.weight(model.token_table)
    return table[torch.randint(len(table), shape, generator=g).to(table.device)].detach().float()


# --- words again ---


def embed_hard(model: Diffusion, ids: Tensor, slots: Tensor, tokens: Tensor) -> Conditioning:
    """Encode token ids with words of the vocabulary in place of some; hooks see what was asked.

    Args:
        model: the model, or a view of one.
        ids: (n, window) token ids; those at the slots do not matter.
        slots: (n, window) true where the words stand, k in every row.
        tokens: (n, k) ids of the words.
    """
    ids = ids.masked_scatter(slots, tokens.to(ids))
    return Conditioning(model.embed_tokens(ids).hidden, ids)


def vocabulary(model: Diffusion) -> Tensor:
    """(words,) every token id but the special ones, which no written prompt can hold."""
    special = torch.tensor(model.tokenizer.all_special_ids)
    every = torch.arange(len(model.weight(model.token_table)))
    return every[~torch.isin(every, special)].to(model.device)


def refuse_overlong(model: Diffusion, prompts: Sequence[str], k: int) -> None:
    """Refuse prompts that would be cut if `k` tokens stood in front of them.

    Raises:
        PalimpsestError: naming the first one, its length and the window.
    """
    for prompt in dict.fromkeys(prompts):
        length = len(_ids(model, prompt)) + 2 + k  # begin and end belong to it
        if length > model.window:
            raise PalimpsestError(
                f"{k} tokens and the prompt {prompt!r} are {length} tokens with begin and end; the "
                f"text encoder's window holds {model.window}: take fewer tokens"
            )
