"""What the closed-form erasers share: the rows that stand for prompts, and how an edit is solved.

Everything here is small and in float64, which not every device has: so it is computed on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch

from palimpsest.core.concepts import Concept, Wording
from palimpsest.core.demand import Demand
from palimpsest.methods import Eraser
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.latents import Wordings

if TYPE_CHECKING:
    from torch import Tensor

Tokens = Literal["last-subject", "through-padding"]
"""Which embeddings stand for a prompt: that of its subject's last token, or from there on through
the padding, and for what is preserved the whole window. A pooled vector is the one row it has."""


Which = Literal["last-subject", "through-padding", "window"]
"""The same, or the whole window."""


class ClosedForm(Eraser):
    """An eraser that solves for the matrices that read the text."""

    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "text inputs"})
    least: ClassVar = dict(erase_scale=0, preserve_scale=0)

    def demand(self, model: Diffusion) -> Demand:
        """Return what it holds: matrices and shifts in float64, on the CPU, and the patch."""
        return Demand(host=20)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the number of entries of every matrix that reads the text, by name."""
        every = model.sites.text_inputs.values()
        return {name: model.weight(name).numel() for names in every for name in names}


class Part(NamedTuple):
    """A part of the conditioning: the matrices that read it, and what an edit wants of them."""

    W_0: dict[str, Tensor]
    """Name → unedited matrix, (out, width)."""
    c: Tensor
    """(rows, width) embeddings of the concepts."""
    c_star: Tensor
    """(rows, width) what takes the place of each: the anchor's, or the empty prompt's from its
    begin token on."""
    k: Tensor
    """(kept rows, width) embeddings of everything that the concepts say to keep."""
    kept: int
    """How many prompts these are of, the empty one left out."""

    def preserve(self, scale: float | None) -> float:
        """Return p: as it is said, or by UCE's older code, which counts the empty prompt too."""
        return max(0.1, 1 / (self.kept + 1)) if scale is None else scale


def parts(
    model: Diffusion,
    concepts: Sequence[Concept],
    tokens: Which,
    wordings: Wordings,
    taken_from: str = "",
) -> list[Part]:
    """Return every part of the conditioning, each of which has an edit of its own.

    Args:
        model: whose text embeddings they are.
        concepts: what shall be edited, with anchors and what is kept.
        tokens: which embeddings stand for a prompt.
        wordings: which prompts.
        taken_from: what the concepts are taken out of, as attributes; nothing edits themselves.
    """
    keep = [text for concept in concepts for text in concept.keep]
    asked = [
        wording
        for concept in concepts
        for wording in concept.wordings
        if wordings == "sentences" or wording.sentence == wording.words
    ]
    found = []
    for part, names in model.sites.text_inputs.items():
        W_0 = {name: model.weight(name).detach().cpu().double() for name in names}
        if taken_from:
            pairs = [_without(model, taken_from, c.name, tokens, part) for c in concepts]
        else:
            pairs = [_pair(model, wording, tokens, part) for wording in asked]
        c, c_star = (torch.cat(side).cpu().double() for side in zip(*pairs, strict=True))
        found.append(Part(W_0, c, c_star, _preserved(model, keep, tokens, part), len(keep)))
    return found


def gain(c: Tensor, k: Tensor, lamb: float, erase: float, preserve: float) -> Tensor:
    """Return e·cᵀ(λ·I + e·Σ ccᵀ + p·Σ kkᵀ)⁻¹ for every row c: how far each pulls the weights.

    With E the errors v* − W₀c, one column per row of `c`, W₀ + E @ gain minimises
    e·Σ ‖Wc − v*‖² + p·Σ ‖(W − W₀)k‖² + λ·‖W − W₀‖².

    Args:
        c: (rows, width) rows to be edited.
        k: (kept rows, width) rows to be preserved.
        lamb: λ, how strongly all of W₀ is held.
        erase: e, weight of the rows to be edited.
        preserve: p, weight of the rows to be preserved.

    Returns:
        (rows, width).
    """
    held = preserve * k.T @ k + lamb * torch.eye(c.shape[1]).to(c)
    return torch.linalg.solve(held + erase * c.T @ c, erase * c.T).T


def _pair(model: Diffusion, wording: Wording, tokens: Which, part: str) -> tuple[Tensor, Tensor]:
    """Return matching rows of a sentence and of its anchor's, (rows, width) each."""
    ours, theirs = model.rows([wording.sentence, wording.anchor_sentence], part).float()
    i = model.text.span(wording.sentence, wording.words)[-1]
    # without an anchor, the begin token of the empty prompt, as in the authors' codes
    j = model.text.span(wording.anchor_sentence, wording.anchor)[-1] if wording.anchor else 0
    return _rows(ours, theirs, i, j, tokens)


def _without(
    model: Diffusion, name: str, attribute: str, tokens: Which, part: str
) -> tuple[Tensor, Tensor]:
    """Return rows of a name, and the same less what an attribute adds to the empty prompt."""
    ours, theirs, empty = model.rows([name, attribute, ""], part).float()
    i, j = (length - 2 for length in model.text.lengths([name, attribute]))
    c, taken = _rows(ours, theirs, i, j, tokens)
    return c, c - (taken - empty[: len(c)])


def _rows(ours: Tensor, theirs: Tensor, i: int, j: int, tokens: Which) -> tuple[Tensor, Tensor]:
    """Return the rows from i and from j on, as many of each; the one row of a pooled vector."""
    if len(ours) == 1 or tokens == "window":
        return ours, theirs
    n = 1 if tokens == "last-subject" else len(ours) - max(i, j)
    return ours[i : i + n], theirs[j : j + n]


def _preserved(model: Diffusion, texts: Sequence[str], tokens: Which, part: str) -> Tensor:
    """Return k, (kept rows, width)."""
    if tokens == "through-padding":
        return model.rows([*texts, ""], part).flatten(0, 1).cpu().double()
    if not texts:
        return model.rows([""], part)[0, :0].cpu().double()
    kept = model.rows(texts, part).cpu().double()
    ends = torch.tensor(model.text.lengths(texts)) - 2 if kept.shape[1] > 1 else 0
    return kept[torch.arange(len(texts)), ends]
