"""The gold model: what perfect forgetting looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.world import assets


@dataclass(frozen=True)
class Gold(Eraser):
    """Put in place the U-Net that was trained without the concept: the control, not a method.

    Retraining without the data is what exact unlearning means (Bourtoule et al., "Machine
    Unlearning", 2021, arXiv:1912.03817). The world ships such U-Nets, trained seed for seed as its
    own but never shown one concept in any caption or picture.

    Traps: the VAE and the CLIP are the world's own and have seen the concept, so gold is no control
    for an edit of the text encoder. A file that does not say what its U-Net was trained without is
    taken at its word.
    """

    file: Path | None = None
    """A patch that holds the U-Net, as `palimpsest world train --without` writes it; the world's
    own for the concept when left out."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"world": {}}
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("bourtoule2021machine")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Read the U-Net that never knew the concept, as a patch of replacements.

        Raises:
            PalimpsestError: as `check`, or the patch lacks another concept, or belongs to another
                base model.
        """
        name = task.concept.name
        patch = Patch.load(self._place(name))
        lacks = patch.about.get("without", name)
        if lacks != name:
            raise PalimpsestError(f"{self.file}: a gold model without {lacks!r}, not {name!r}")
        model.accepts(patch)  # the paper's exact unlearning: trained without the concept
        return Result(replace(patch, about={**patch.about, **self.about}))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse, before anything is spent, what no gold model is for.

        Raises:
            PalimpsestError: more than one concept, or no U-Net was ever trained without this one.
        """
        self._place(task.concept.name)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries that are replaced, by parameter."""
        return model.sizes("full")

    def _place(self, name: str) -> Path:
        if self.file is not None:
            if not self.file.is_file():
                raise PalimpsestError(f"{self.file}: no such file; name a gold model's patch")
            return self.file
        place = assets.gold(name)
        if not place.is_file():
            known = ", ".join(assets.golds()) or "none at all"
            raise PalimpsestError(
                f"no gold model without {name!r} is shipped (there is one without each of: "
                f"{known}); train one with: palimpsest world train --part unet --without '{name}'"
            )
        return place
