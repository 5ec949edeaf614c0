"""The negative prompt: asking the model not to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.hooks import NegativeWords


@dataclass(frozen=True)
class NegativePrompt:
    """Let guidance start from the concept's name instead of the empty prompt.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598, eq. 6, with the
    concept's name n where the empty prompt stood, as every user interface offers it:
    ε̂(x_t, c) = ε(x_t, n) + w·(ε(x_t, c) − ε(x_t, n)). No weight moves and nothing is trained.
    """

    synonyms: bool = True
    """Whether the concepts' synonyms are named too."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "world": {}}
    bibtex: ClassVar[str] = """@article{ho2022classifier,
  title={Classifier-Free Diffusion Guidance},
  author={Ho, Jonathan and Salimans, Tim},
  journal={arXiv preprint arXiv:2207.12598},
  year={2022}
}"""

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Name the concepts, separated by commas, as one negative prompt.

        Raises:
            PalimpsestError: the names do not fit the model's window.
        """
        names = [n for c in concepts for n in (c.name, *(c.synonyms if self.synonyms else ()))]
        words = ", ".join(dict.fromkeys(names))
        if model.text.overlong([words]):
            raise PalimpsestError(
                f"the negative prompt {words!r} is longer than the model's window of "
                f"{model.text.window} tokens; name fewer concepts, or leave their synonyms out"
            )
        about = {"method": "negative_prompt", "arguments": asdict(self)}
        return model.checked(Patch({}, about=about, hook=NegativeWords(words)))

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move: none."""
        return {}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations: none."""
        return 0, 0
