"""Unified Concept Editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.lazily import no_grad
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox import closed_form
from palimpsest.toolbox.closed_form import ClosedForm, Tokens
from palimpsest.toolbox.latents import Wordings


@dataclass(frozen=True)
class UCE(ClosedForm):
    """Map the concept's keys and values to its anchor's, in closed form.

    Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv:2308.14761,
    eq. 7. For every key and value matrix W₀ of the cross-attention, with c the text embedding of a
    concept's token, c* that of its anchor and k those that must be preserved,
    W = (λ·W₀ + e·Σ W₀c*cᵀ + p·Σ W₀kkᵀ)(λ·I + e·Σ ccᵀ + p·Σ kkᵀ)⁻¹.
    Where a model reads the text in several parts, each part's matrices have an edit of their own.

    Traps: the authors' older code differs in the rows that stand for a prompt and in what is
    preserved, and by how much. Without an anchor the concept becomes the begin token.
    """

    lamb: float = 0.5
    """λ: how strongly all of W₀ is held."""
    erase_scale: float = 1.0
    """e: weight of the concepts to erase."""
    preserve_scale: float | None = 1.0
    """p: weight of the concepts to preserve; None is the rule of the authors' older code, max(0.1,
    1/(n + 1)) with n prompts kept."""
    erase_from: str = ""
    """What the concept, an attribute, is taken out of, such as *cowboy* for *hat*: its bare name is
    edited to mean itself less what the attribute adds to the empty prompt (not published)."""
    tokens: Tokens = "last-subject"
    """Which embeddings stand for a prompt: that of the subject's last token, or from there through
    the padding (the authors' older code, which also preserves over the whole window)."""
    wordings: Wordings = "name"
    """What is edited and preserved: bare names, or every sentence that asks for the concept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "older": {"preserve_scale": None, "tokens": "through-padding"},
        "world": {"lamb": 0.1, "tokens": "through-padding", "wordings": "sentences"},
    }
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("gandikota2024unified")
    least: ClassVar = dict(lamb=1e-6)

    @no_grad
    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Solve the edit: each concept becomes its anchor, or the empty prompt if it has none.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        concepts, taken_from = task.concepts, self.erase_from
        parts = closed_form.parts(model, concepts, self.tokens, self.wordings, taken_from)
        deltas = {}
        for part in parts:
            preserve = part.preserve(self.preserve_scale)
            gain = closed_form.gain(part.c, part.k, self.lamb, self.erase_scale, preserve)
            # eq. 7 as W − W₀ = W₀·move: the same for every matrix
            move = (part.c_star - part.c).T @ gain
            deltas |= {name: W @ move for name, W in part.W_0.items()}
        return Result(model.make_patch(deltas))
