"""Where textual inversion of a concept's pictures ends, beside the concept's own word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.concepts import ask
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Number, Seen
from palimpsest.metrics import rates
from palimpsest.toolbox.inversion import Inversion, first_vectors
from palimpsest.toolbox.soft_tokens import SLOT, embeddings

if TYPE_CHECKING:
    from torch import Tensor

MEANINGS = {
    "M-Score (reconstructed)": "cosine, −1 to 1, of the word that textual inversion finds for "
    "the concept's pictures and of the concept's own. Lower than the unedited model's is "
    "thorough."
}


@dataclass(frozen=True)
class MScore:
    """The M-Score (reconstructed): how near a word found for the concept's pictures is to its own.

    Zhang et al. 2023, "Forget-Me-Not", arXiv:2303.17591, name a Memorization Score and publish
    neither formula nor code. This is our reading. On a model, textual inversion (Gal et al. 2023,
    eq. 2) trains one token embedding v, from a neutral word, to draw the concept's anchor pictures,
    the same for every model; with e the mean embedding of the tokens of the concept's name,
    M = v·e / (|v| |e|). The mean over inversions of several seeds is told with Student's interval.

    Traps: it holds for one model's text encoder and one recipe of inversion, which the spec names.
    It says where the search ends and not whether the word that it found draws the concept.
    """

    anchors: Path | None = None
    """A folder of the concept's pictures; those of the unedited model without one."""
    inversion: Inversion = field(
        default_factory=lambda: Inversion(100, 2e-3, 8, 1e-2, warmup=0, norm=None)
    )
    """How each word is found."""
    pictures: int = 12
    """Anchor pictures of each concept, at most."""
    seeds: int = 3
    """Inversions of each concept."""
    start: str = "picture"
    """The word that each starts from."""

    meanings = MEANINGS
    in_python: ClassVar = "inverts pictures on the model itself, which is not loaded to judge"

    @property
    def spec(self) -> str:
        """The recipe of the inversion, and the anchor pictures."""
        how = self.inversion
        of = "a folder" if self.anchors else "the unedited model"
        return (
            f"textual inversion from {self.start!r}, {how.steps} steps of {how.batch} at "
            f"{how.lr:g}, {self.pictures} pictures of {of}"
        )

    def collect(self, seen: Seen) -> dict[str, list[float]]:
        """Return the cosine of each inversion, by concept; none where there is no model."""
        if seen.model is None or seen.answered:
            return {}
        return {c.name: self._cosines(seen, c, own) for c, own in seen.by_concept if own}

    def _cosines(self, seen: Seen, concept: Any, own: Sequence[Any]) -> list[float]:
        x_0 = seen.model.encode(self._anchors(seen, own))
        word = embeddings(seen.model, concept.name).mean(0)
        texts, found = ask(SLOT, concept.kind), []
        for seed in range(self.seeds):
            context = Context(seed=seed)
            start = first_vectors(seen.model, (self.start,), 1, context.stream("vectors"))
            v, _ = self.inversion(
                seen.model, x_0, texts, start, context=context, label=f"inverting {concept.name}"
            )
            found.append(float(torch.nn.functional.cosine_similarity(v[0], word, dim=0)))
        return found

    def _anchors(self, seen: Seen, own: Sequence[Any]) -> Tensor:
        """Return (n, 3, side, side) pictures of a concept, spread over those that there are."""
        if self.anchors is not None:
            return read_folder(self.anchors, seen.model.side)[0][: self.pictures]
        look = seen.before or seen.pictures
        some = torch.linspace(0, len(own) - 1, min(len(own), self.pictures)).long().tolist()
        return look([own[i] for i in some])

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the mean cosine of each concept, with Student's interval over inversions."""
        return [
            Number.of("M-Score (reconstructed)", mean, "", name if len(found) > 1 else "")
            for name, cosines in found.items()
            if (mean := rates.mean(cosines, within=(-1, 1)))
        ]
