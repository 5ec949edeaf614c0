"""Replay: what a recovery found, tried on another model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Recovery, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.asking import Asking, is_asking
from palimpsest.toolbox.asking import answered, refuse


@dataclass(frozen=True)
class Replay(Recovery):
    """Ask another model what a recovery found, or lay the recovery's patch over it.

    Whether an attack found on one model works on another is asked by Tsai et al., "Ring-A-Bell! How
    Reliable are Concept Removal Methods for Diffusion Models?", ICLR 2024 (arXiv:2310.10012), whose
    prompts know no model at all. Found words are carried by their token ids, embeddings by their
    vectors, noised pictures by their latents, a patch by its shifts; nothing is trained.

    Traps: words go to any model, by their writing where its tokens are others; an embedding needs a
    text encoder of the same tokens and width, latents a model of the same latents, a patch the same
    base. What transfers to gold was not hidden in the erased model.
    """

    found: Path | None = None
    """What a recovery's run keeps: its `asking.safetensors`, or its `patch.safetensors`."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"world": {}}
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion"})
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("tsai2024ringabell")

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Try what was found on `model` as edited by `erased`.

        Raises:
            PalimpsestError: it cannot be tried on this model.
        """
        found = self.what()
        if isinstance(found, Patch):
            model.accepts(found)
            return Result(replace(found, about={"of": dict(found.about)}))
        with model.patched(erased):
            # step: one model's find, another model's answers
            answers = answered(model, found, context, "pictures of what was found")
        texts = found.texts if found.latents is None else ()
        return Result(prompts=texts, asked=found.asked, answers=answers, asking=found)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse, before anything is spent, what cannot be tried on this model."""
        found = self.what()
        if isinstance(found, Patch):
            model.accepts(found)
        else:
            refuse(model, found)

    def what(self) -> Asking | Patch:
        """Return what was found.

        Raises:
            PalimpsestError: no file is named, or it is neither.
        """
        if self.found is None:
            raise PalimpsestError(
                "Replay has nothing to try; name what a recovery found by the setting 'found', or "
                "run palimpsest recover replay RUN --on OTHER"
            )
        return (Asking if is_asking(self.found) else Patch).load(self.found)
