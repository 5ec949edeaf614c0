"""Reliable and Efficient Concept Erasure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.lazily import no_grad
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox import closed_form
from palimpsest.toolbox.closed_form import ClosedForm, Part, Tokens
from palimpsest.toolbox.latents import Wordings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RECE(ClosedForm):
    """Edit as UCE does, then find what still calls the concept up, and edit that too.

    Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV
    2024, arXiv:2407.12383. With W₀ the unedited and W the edited keys and values of the
    cross-attention, the embedding c′ that comes nearest to what the concept c meant minimises
    Σ ‖Wc′ − W₀c‖² + λ·‖c′‖² over all of them; each round maps it to the anchor in its turn.
    Where a model reads the text in several parts, each part's matrices have edits of their own.

    Traps: under `last` the concept may come back, since nothing holds c where it was mapped. A
    small λ makes c′ long and its edit strong. The target is always what the unedited model made of
    the anchor; in the authors' code it drifts with the edited weights.
    """

    rounds: int = 3
    """Rounds of deriving c′ and editing it away; 0 is UCE with the first edit's weights."""
    reg: float = 0.1
    """λ of the derivation: the larger, the shorter c′ and the gentler its edit."""
    first_lamb: float = 0.5
    """λ₂ of the edit before the first round, which the authors make by UCE's older code."""
    first_preserve: float | None = None
    """λ₁ of that edit; None is that code's rule, max(0.1, 1/(n + 1)) with n prompts kept."""
    lamb: float = 0.1
    """λ₂ of each round's edit: how strongly all of the weights is held."""
    erase_scale: float = 1.0
    """Weight of what is mapped to the anchor."""
    preserve_scale: float = 0.1
    """λ₁ of each round's edit: weight of the concepts to preserve."""
    edits: Literal["last", "all"] = "last"
    """What a round edits: the last c′ alone, from the weights as they stand (the authors' code),
    which may let the concept come back; or the concept and every c′ so far, anew from W₀."""
    tokens: Tokens = "through-padding"
    """Which embeddings stand for a prompt: that of the subject's last token, or from there through
    the padding (UCE's older code, which RECE builds on; it preserves over the whole window)."""
    round_tokens: Literal["window", "same"] = "window"
    """Which of them a round derives and edits: all of the window, each mapped to that of the anchor
    at its place (the authors' code), or the `same` as the first edit."""
    wordings: Wordings = "name"
    """What is edited: bare names, or every sentence that asks for the concept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unsafe": {"rounds": 2},
        "object": {"rounds": 1},
        "style": {"rounds": 1, "reg": 1e-3},
        "world": {
            "first_lamb": 0.1,
            "first_preserve": 1.0,
            "preserve_scale": 1.0,
            "edits": "all",
            "round_tokens": "same",
            "wordings": "sentences",
        },
    }
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("gong2024reliable")
    least: ClassVar = dict(rounds=0, reg=1e-12, first_lamb=1e-6, first_preserve=0, lamb=1e-6)

    @no_grad
    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Solve the edits: each concept becomes its anchor, or the empty prompt if it has none.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        parts = closed_form.parts(model, task.concepts, self.tokens, self.wordings)
        which = "window" if self.round_tokens == "window" else self.tokens
        every = closed_form.parts(model, task.concepts, which, self.wordings)
        deltas = {}
        for part, rows in zip(parts, every, strict=True):
            W = self._rounds(part, rows)
            deltas |= {name: W[name] - W_0 for name, W_0 in part.W_0.items()}
        return Result(model.make_patch(deltas))

    def _rounds(self, part: Part, rows: Part) -> dict[str, Tensor]:
        """Return the matrices of a part, edited as UCE does and once more of `rows` every round."""
        W = self._edited(part, part.W_0, self.first_lamb, part.preserve(self.first_preserve))
        every, each = part, (self.lamb, self.preserve_scale)
        for _ in range(self.rounds):
            again = part._replace(c=derived(W, part.W_0, rows.c, self.reg), c_star=rows.c_star)
            if self.edits == "last":
                W = self._edited(again, W, *each)
            else:
                c, c_star = torch.cat([every.c, again.c]), torch.cat([every.c_star, again.c_star])
                every = part._replace(c=c, c_star=c_star)
                W = self._edited(every, part.W_0, *each)
        return W

    def _edited(
        self, part: Part, W: Mapping[str, Tensor], lamb: float, preserve: float
    ) -> dict[str, Tensor]:
        """Return W edited as UCE does: c shall give what c* gave the unedited model."""
        c, c_star = part.c.T, part.c_star.T
        gain = closed_form.gain(part.c, part.k, lamb, self.erase_scale, preserve)
        # eq. 3
        return {name: w + (part.W_0[name] @ c_star - w @ c) @ gain for name, w in W.items()}


def derived(W: Mapping[str, Tensor], W_0: Mapping[str, Tensor], c: Tensor, reg: float) -> Tensor:
    """Return c′ = (λ·I + Σ WᵀW)⁻¹ (Σ WᵀW₀)·c, for every row: what evokes c again under W.

    Args:
        W: edited matrices, (out, width) each.
        W_0: the same ones unedited.
        c: (rows, width) embeddings of the concepts.
        reg: λ.

    Returns:
        (rows, width).
    """
    left = reg * torch.eye(c.shape[1]).to(c)
    right = torch.zeros_like(left)
    for name, w in W.items():
        left, right = left + w.T @ w, right + w.T @ W_0[name]
    return torch.linalg.solve(left, right @ c.T).T  # their closed form of c′
