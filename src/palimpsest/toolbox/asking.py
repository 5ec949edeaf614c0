"""Asking a model what a recovery found, in place of plain prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning, TokenSlots
from palimpsest.patch.asking import Asking, Entry

if TYPE_CHECKING:
    from torch import Tensor


def in_words(model: Diffusion, asked: Sequence[Prompt], ids: Tensor) -> Asking:
    """Return what (n, window) token ids ask in place of n prompts."""
    texts = tuple(model.text.decode(row) for row in ids)
    own = vocabulary_of(model)
    return Asking(asked=tuple(asked), ids=ids.cpu(), texts=texts, vocabulary=own)


def in_vectors(
    model: Diffusion, asked: Sequence[Prompt], ids: Tensor, slots: Tensor, vectors: Tensor
) -> Asking:
    """Return what token ids with vectors among them ask; shapes as of `embed_soft`."""
    words = in_words(model, asked, ids)
    return replace(words, texts=(), slots=slots.cpu(), vectors=vectors.detach().float().cpu())


def from_latents(
    model: Diffusion, asked: Sequence[Prompt], latents: Tensor, entry: Entry, *, empty: bool
) -> Asking:
    """Return what latents on the way ask, with the prompts, or with the empty one."""
    plain = Asking(asked=tuple(asked))
    if not empty:
        plain = in_words(model, asked, model.text.ids([prompt.text for prompt in asked]))
    return replace(plain, latents=latents.cpu(), entry=entry)


def answered(model: Diffusion, asking: Asking, context: Context, label: str) -> Tensor:
    """Return what a model draws when it is asked so, (n, 3, height, width) in [0, 1].

    Raises:
        PalimpsestError: as `refuse`.
    """
    refuse(model, asking)
    cond = embedded(model, asking)
    if asking.latents is None or asking.entry is None:
        return model.generate(asking.asked, context, label, cond)
    made, at = [], asking.entry
    how = {"steps": at.steps, "guidance": at.guidance, "start": at.step, "apart": True}
    with context.progress.task(label, len(asking.asked)) as task:
        for i in torch.arange(len(asking.asked)).split(model.sampling.batch):
            x = model.sample(asking.latents[i].to(model.device, torch.float32), cond[i], **how)
            made.append(model.decode(x).cpu())
            task.advance(len(i))
    return torch.cat(made)


def embedded(model: Diffusion, asking: Asking) -> Conditioning:
    """Return what the model's text encoder says of it, each row by itself."""
    if asking.ids is None:
        return model.empty().expand(len(asking.asked))
    ids, slots, vectors = asking.ids, asking.slots, asking.vectors
    if asking.texts and vocabulary_of(model) != asking.vocabulary:
        ids = model.text.ids(asking.texts)
    each: list[TokenSlots | None] = [None] * len(ids)
    if slots is not None and vectors is not None:
        slots, own = slots.to(model.device), vectors.to(model.device)
        parts = own.split(slots.sum(1).tolist())
        each = [TokenSlots(where[None], v) for where, v in zip(slots, parts, strict=True)]
    rows = zip(ids.to(model.device), each, strict=True)
    return reduce(add, (model.embed_ids(row[None], own) for row, own in rows))


def refuse(model: Diffusion, asking: Asking) -> None:
    """Refuse what cannot be asked of a model.

    Raises:
        PalimpsestError: vectors of a text encoder with other tokens or another width, ids that it
            does not have, or latents of another shape.
    """
    ids, alike = asking.ids, vocabulary_of(model) == asking.vocabulary
    if ids is not None and not asking.texts:
        width = model.token_vectors().shape[1]
        theirs = width if asking.vectors is None else asking.vectors.shape[1]
        if not alike or theirs != width:
            raise PalimpsestError(
                f"the found embedding ({theirs} numbers a token) belongs to another text encoder "
                f"than that of {model.name!r} ({width}); try it on a model with the same one"
            )
    window = model.text.window
    if ids is not None and alike and ids.shape[1] != window:
        raise PalimpsestError(
            f"the found ids are rows of {ids.shape[1]}, and the window of {model.name!r} is "
            f"{window}; run the recovery again"
        )
    if ids is not None and alike and int(ids.max()) >= len(model.token_vectors()):
        raise PalimpsestError(f"the found ids number tokens that {model.name!r} does not have")
    if asking.latents is not None and tuple(asking.latents.shape[1:]) != model.latents.shape:
        theirs, own = (
            " × ".join(map(str, shape)) for shape in (asking.latents.shape[1:], model.latents.shape)
        )
        raise PalimpsestError(
            f"the found latents are {theirs}, and those of {model.name!r} {own}; try them on a "
            "model of the same latents"
        )


def vocabulary_of(model: Diffusion) -> str:
    """Return a fingerprint of a model's tokens: what the numbers in ids stand for."""
    text = model.text
    own = [text.window, text.begin, text.end, text.pad, sorted(text.pieces().items())]
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
