"""An edit that others made and published, as an erasing method that reads it from its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.errors import NoDifferenceError, PalimpsestError
from palimpsest.exchange import import_
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.patch import manifest


@dataclass(frozen=True)
class Imported(Eraser):
    """Take the edit that a published file holds: nothing is trained, so that it can be audited.

    Published erasures were attacked as their authors released them by Pham et al., "Circumventing
    Concept Erasure Methods for Text-to-Image Generative Models", 2024 (arXiv:2308.01508).

    Traps: the edit is the difference to the base that is loaded, so the base must be the one that
    the file was made from; another one's own differences would count as the edit. Weights that
    equal the base are an empty edit, and no error. The concept is whatever is named: the file
    does not say what it was to forget.
    """

    file: Path | None = None
    """What was published: a patch, or any file or folder that `palimpsest patch import` reads."""
    word: str | None = None
    """For a textual inversion: the word whose place it takes."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"world": {}}
    seedless: ClassVar[bool] = True
    bibtex: ClassVar[str] = cite("pham2024circumventing")

    @property
    def title(self) -> str:
        """What it is called for people: by its file, since there may be several."""
        return self.file.name if self.file is not None else type(self).__name__

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Read the edit; it is empty if no weight differs from the model's.

        Raises:
            PalimpsestError: as `check`, the file cannot be read, or belongs to another base model.
        """
        try:
            patch = self._read(self.place(), model)
        except NoDifferenceError as same:
            context.tell(f"{same}; it is judged as an empty edit")
            patch = Patch({})
        of = {"of": dict(patch.about)} if patch.about else {}
        return Result(replace(patch, about=of | self.about))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse, before anything is spent, a file that is not there.

        Raises:
            PalimpsestError: no file is named, or none lies there.
        """
        self.place()

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return nothing: what differs is known only once the file was read."""
        return {}

    def _read(self, place: Path, model: Diffusion) -> Patch:
        own = place.is_file() and place.suffix == ".safetensors" and manifest(place) is not None
        if not own:
            return import_.read(place, model, self.word)
        patch = Patch.load(place)
        model.accepts(patch)  # the paper's setting: what was published, as it was published
        return patch

    def place(self) -> Path:
        """Return the file or folder.

        Raises:
            PalimpsestError: none is named, or none lies there.
        """
        if self.file is None:
            raise PalimpsestError(
                "Imported has no file; name what was published by the setting 'file'"
            )
        if not self.file.exists():
            raise PalimpsestError(
                f"{self.file}: no such file or folder; name what was published (download it first)"
            )
        return self.file
