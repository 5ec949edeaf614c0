"""Unified Concept Editing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.concepts import Concept, ask
from palimpsest.models.stable_diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.types import Context, at_least


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
    tokens: Literal["last-subject", "through-padding"] = "last-subject"
    """Which embeddings stand for a prompt: that of the subject's last token, or from there through
    the padding (the authors' older code, which also preserves over the whole window)."""
    wordings: Literal["name", "sentences"] = "name"
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
        pairs = [self._pair(model, *texts) for c in concepts for texts in self._texts(c)]
        # small and in float64, which not every device has: so on the CPU
        c = torch.cat([ours for ours, _ in pairs]).cpu().double()  # (tokens, width)
        c_star = torch.cat([theirs for _, theirs in pairs]).cpu().double()
        k = self._preserved(model, concepts).cpu().double()
        held = self.preserve_scale * k.T @ k + self.lamb * torch.eye(c.shape[1]).to(c)
        right = held + self.erase_scale * c.T @ c
        # W − W₀ = e·W₀·Σ(c* − c)cᵀ·right⁻¹: the numerator less W₀·right
        move = torch.linalg.solve(right, self.erase_scale * c.T @ (c_star - c)).T
        weights = model.parameters("xattn-kv")
        deltas = {name: W.cpu().double() @ move for name, W in weights.items() if W.ndim == 2}
        return model.make_patch(deltas, {"method": "uce", "arguments": asdict(self)})

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {name: p.numel() for name, p in model.parameters("xattn-kv").items() if p.ndim == 2}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations: none, only its weights are read."""
        return 0, 0

    def _texts(self, concept: Concept) -> list[tuple[str, str, str, str]]:
        """(prompt, its subject, the anchor's prompt, its subject)."""
        anchor = concept.anchor or ""
        names = (concept.name, *concept.synonyms)
        if self.wordings == "name":
            return [(name, name, anchor, anchor) for name in names]
        theirs = ask(anchor, concept.kind) if anchor else [""] * len(ask("x", concept.kind))
        return [
            (prompt, name, other, anchor)
            for name in names
            for prompt, other in zip(ask(name, concept.kind), theirs, strict=True)
        ]

    def _pair(
        self, model: Diffusion, prompt: str, subject: str, other: str, anchor: str
    ) -> tuple[Tensor, Tensor]:
        """Matching rows of the two prompts' embeddings, (tokens, width) each."""
        ours, theirs = model.embed([prompt, other]).hidden.float()
        i = model.token_span(prompt, subject)[-1]
        j = model.token_span(other, anchor)[-1] if anchor else 1  # the empty prompt's end
        n = 1 if self.tokens == "last-subject" else model.window - max(i, j)
        return ours[i : i + n], theirs[j : j + n]

    def _preserved(self, model: Diffusion, concepts: Sequence[Concept]) -> Tensor:
        """(tokens, width) embeddings of everything to be preserved."""
        texts = [text for concept in concepts for text in concept.keep]
        if self.tokens == "through-padding":
            return model.embed([*texts, ""]).hidden.float().flatten(0, 1)
        if not texts:
            return model.embed([""]).hidden.float()[0, :0]
        ends = [len(row) - 2 for row in model.tokenizer(texts, truncation=True).input_ids]
        return model.embed(texts).hidden.float()[torch.arange(len(texts)), torch.tensor(ends)]
