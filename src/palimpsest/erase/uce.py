"""Unified Concept Editing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox import closed_form
from palimpsest.toolbox.closed_form import Tokens, Wordings


@dataclass(frozen=True)
class UCE:
    """Map the concept's keys and values to its anchor's, in closed form.

    Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv:2308.14761,
    eq. 7. For every key and value matrix W₀ of the cross-attention, with c the text embedding of a
    concept's token, c* that of its anchor and k those that must be preserved,
    W = (λ·W₀ + e·Σ W₀c*cᵀ + p·Σ W₀kkᵀ)(λ·I + e·Σ ccᵀ + p·Σ kkᵀ)⁻¹.
    """

    lamb: float = 0.5
    """λ: how strongly all of W₀ is held."""
    erase_scale: float = 1.0
    """e: weight of the concepts to erase."""
    preserve_scale: float = 1.0
    """p: weight of the concepts to preserve."""
    tokens: Tokens = "last-subject"
    """Which embeddings stand for a prompt: that of the subject's last token, or from there through
    the padding (the authors' older code, which also preserves over the whole window)."""
    wordings: Wordings = "name"
    """What is edited and preserved: bare names, or every sentence that asks for the concept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "older": {"lamb": 0.1, "tokens": "through-padding"},
        "world": {"lamb": 0.1, "tokens": "through-padding", "wordings": "sentences"},
    }
    bibtex: ClassVar[str] = """@inproceedings{gandikota2024unified,
  title={Unified Concept Editing in Diffusion Models},
  author={Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna
          and Bau, David},
  booktitle={IEEE/CVF Winter Conference on Applications of Computer Vision},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, lamb=1e-6, erase_scale=0, preserve_scale=0)

    @torch.no_grad()
    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts: each becomes its anchor, or the empty prompt if it has none.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        c, c_star = closed_form.rows(model, concepts, self.tokens, self.wordings)
        k = closed_form.preserved(model, concepts, self.tokens)
        gain = closed_form.gain(c, k, self.lamb, self.erase_scale, self.preserve_scale)
        move = (c_star - c).T @ gain  # W − W₀ = W₀·move: the same for every matrix
        deltas = {name: W @ move for name, W in closed_form.weights(model).items()}
        return model.make_patch(deltas, {"method": "uce", "arguments": asdict(self)})

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return closed_form.moves(model)

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations: none, only its weights are read."""
        return 0, 0
