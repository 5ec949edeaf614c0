"""What the closed-form erasers share: the rows that stand for prompts, and how an edit is solved.

Everything here is small and in float64, which not every device has: so it lies on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.models.diffusion import Diffusion

Tokens = Literal["last-subject", "through-padding"]
"""Which embeddings stand for a prompt: that of its subject's last token, or from there on through
the padding, and for what is preserved the whole window."""
Wordings = Literal["name", "sentences"]
"""How a concept is called: by its bare name, or by every sentence that asks for it."""


def weights(model: Diffusion) -> dict[str, Tensor]:
    """W₀: every key and value matrix of the cross-attention, (out, width) each, by name."""
    found = model.parameters("xattn-kv")
    return {name: W.detach().cpu().double() for name, W in found.items() if W.ndim == 2}


def moves(model: Diffusion) -> dict[str, int]:
    """Entries of those matrices, by name."""
    return {name: p.numel() for name, p in model.parameters("xattn-kv").items() if p.ndim == 2}


def rows(
    model: Diffusion, concepts: Sequence[Concept], tokens: Tokens, wordings: Wordings
) -> tuple[Tensor, Tensor]:
    """Embeddings of the concepts and, row by row, of what takes their place.

    Returns:
        c and c*, (tokens, width) each. c* is of the anchors, or of the empty prompt where a
        concept has none.
    """
    pairs = [
        _pair(model, *wording, tokens)
        for concept in concepts
        for wording in concept.wordings
        if wordings == "sentences" or wording.sentence == wording.words
    ]
    c, c_star = (torch.cat(side).cpu().double() for side in zip(*pairs, strict=True))
    return c, c_star


def preserved(model: Diffusion, concepts: Sequence[Concept], tokens: Tokens) -> Tensor:
    """k: (tokens, width) embeddings of everything that the concepts say to keep."""
    texts = [text for concept in concepts for text in concept.keep]
    if tokens == "through-padding":
        return model.rows([*texts, ""]).flatten(0, 1).cpu().double()
    if not texts:
        return model.rows([""])[0, :0].cpu().double()
    ends = [n - 2 for n in model.text.lengths(texts)]
    return model.rows(texts)[torch.arange(len(texts)), torch.tensor(ends)].cpu().double()


def gain(c: Tensor, k: Tensor, lamb: float, erase: float, preserve: float) -> Tensor:
    """e·cᵀ(λ·I + e·Σ ccᵀ + p·Σ kkᵀ)⁻¹ for every row c: how far each pulls the weights.

    With E the errors v* − W₀c, one column per row of `c`, W₀ + E @ gain minimises
    e·Σ ‖Wc − v*‖² + p·Σ ‖(W − W₀)k‖² + λ·‖W − W₀‖².

    Args:
        c: (tokens, width) rows to be edited.
        k: (tokens, width) rows to be preserved.
        lamb: λ, how strongly all of W₀ is held.
        erase: e, weight of the rows to be edited.
        preserve: p, weight of the rows to be preserved.

    Returns:
        (tokens, width).
    """
    held = preserve * k.T @ k + lamb * torch.eye(c.shape[1]).to(c)
    return torch.linalg.solve(held + erase * c.T @ c, erase * c.T).T


def _pair(
    model: Diffusion, prompt: str, subject: str, other: str, anchor: str, tokens: Tokens
) -> tuple[Tensor, Tensor]:
    """Matching rows of the two prompts' embeddings, (tokens, width) each."""
    ours, theirs = model.rows([prompt, other]).float()
    i = model.text.span(prompt, subject)[-1]
    j = model.text.span(other, anchor)[-1] if anchor else 1  # the empty prompt's end
    n = 1 if tokens == "last-subject" else model.text.window - max(i, j)
    return ours[i : i + n], theirs[j : j + n]
