"""Soft tokens: vectors in a prompt that stand for no word of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning, TokenSlots

if TYPE_CHECKING:
    from torch import Tensor

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
    return model.embed_ids(ids, TokenSlots(slots, vectors))


# --- in place of words ---


def embeddings(model: Diffusion, words: str) -> Tensor:
    """Return (tokens, width) token embeddings of words, in float32.

    Raises:
        PalimpsestError: the words hold no token.
    """
    ids = model.text.plain(words)
    if not ids:
        raise PalimpsestError(f"the words {words!r} hold no token")
    return model.token_vectors()[ids].float()


def token_ids(model: Diffusion, prompts: Sequence[str], k: int) -> tuple[Tensor, Tensor]:
    """Return token ids of prompts with `k` places for vectors at their `{}`.

    Returns:
        (n, window) ids, and (n, window) true where the vectors stand.

    Raises:
        PalimpsestError: a prompt without exactly one `{}`, or too long for the window.
    """
    text = model.text
    ids = torch.full((len(prompts), text.window), text.pad)
    slots = torch.zeros(len(prompts), text.window, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.count(SLOT) != 1:
            raise PalimpsestError(f"the prompt {prompt!r} must hold one {SLOT} for the vectors")
        before, after = (text.plain(part) for part in prompt.split(SLOT))
        line = [text.begin, *before, *[text.begin] * k, *after, text.end]
        if len(line) > text.window:
            raise PalimpsestError(
                f"the prompt {prompt!r} with {k} vectors is {len(line)} tokens long; the text "
                f"encoder's window holds {text.window}"
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
    """Return token ids of prompts with `k` places between the begin token and the first word.

    Returns:
        (n, window) ids, cut at their end where they no longer fit, and (n, window) true at the
        places.
    """
    text, n = model.text, len(prompts)
    ids = text.ids(prompts).to(model.device)
    longer = torch.cat([ids[:, :1], ids[:, :1].expand(n, k), ids[:, 1:]], 1)[:, : text.window]
    end = torch.eq(ids, text.end).int().argmax(1)  # the first one: the others pad
    longer[end + k >= text.window, -1] = text.end
    slots = torch.zeros_like(longer, dtype=torch.bool)
    slots[:, 1 : k + 1] = True
    return longer, slots


def random_words(model: Diffusion, shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """Return (*shape, width) embeddings of words drawn from the whole vocabulary, in float32."""
    table = model.token_vectors()
    return table[torch.randint(len(table), shape, generator=g).to(table.device)].float()


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
    return model.embed_ids(ids)


def vocabulary(model: Diffusion) -> Tensor:
    """Return (words,) every token id but the special ones, which no written prompt can hold."""
    special = torch.tensor(model.text.special)
    every = torch.arange(len(model.token_vectors()))
    return every[~torch.isin(every, special)].to(model.device)


def refuse_overlong(model: Diffusion, prompts: Sequence[str], k: int) -> None:
    """Refuse prompts that would be cut if `k` tokens stood in front of them.

    Raises:
        PalimpsestError: naming the first one, its length and the window.
    """
    for prompt in dict.fromkeys(prompts):
        length = len(model.text.plain(prompt)) + 2 + k  # begin and end belong to it
        if length > model.text.window:
            raise PalimpsestError(
                f"{k} tokens and the prompt {prompt!r} are {length} tokens with begin and end; the "
                f"text encoder's window holds {model.text.window}: take fewer tokens"
            )
