"""The negative prompt: asking the model not to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.hooks import NegativeWords


@dataclass(frozen=True)
class NegativePrompt(Eraser):
    """Let guidance start from the concept's name instead of the empty prompt.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598, eq. 6, with the
    concept's name n where the empty prompt stood, as every user interface offers it:
    ε̂(x_t, c) = ε(x_t, n) + w·(ε(x_t, c) − ε(x_t, n)). No weight moves and nothing is trained.

    Traps: asking for n itself cancels the guidance and brings the concept back; a prompt that names
    it outright comes near to that. Without guidance (w = 1) there is no negative prompt.
    """

    synonyms: bool = True
    """Whether the concepts' synonyms are named too."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"world": {}}
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "an empty prompt"})
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("ho2022classifier")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Name the concepts, separated by commas, as one negative prompt.

        Raises:
            PalimpsestError: the names do not fit the model's window.
        """
        called = [c.names if self.synonyms else (c.name,) for c in task.concepts]
        words = ", ".join(dict.fromkeys(name for names in called for name in names))
        if model.text.overlong([words]):
            raise PalimpsestError(
                f"the negative prompt {words!r} is longer than the model's window of "
                f"{model.text.window} tokens; name fewer concepts, or leave their synonyms out"
            )
        return Result(model.checked(Patch({}, hook=NegativeWords(words))))  # n of eq. 6
