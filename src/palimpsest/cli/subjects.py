"""What a person may name to be evaluated: a model, a run, or a patch file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.cli import machine, open_run
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.runs.folder import Run

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.patch import Patch

Named = tuple[str, str, tuple[tuple[str, str], ...]]
"""A model's name, its precision, and which of its files are read."""

HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""What the name of a model on the Hub looks like."""


@dataclass(frozen=True)
class Subject:
    """A model, and what lies over it."""

    name: str
    """What it is called in tables."""
    model: Named
    """The model's name and precision, and which of its files are read."""
    world: bool
    """Whether the world's judge knows what it draws."""
    path: Path | None = None
    """The run or the patch file that lies over the model; None is the model itself."""
    erased: tuple[str, ...] = ()
    """The concepts that it was made to forget."""

    @property
    def unedited(self) -> Subject:
        """The model that it refers to, as it is."""
        return Subject(f"{Path(self.model[0]).name}, unedited", self.model, self.world)

    def patches(self) -> list[Patch]:
        """Return what lies over the model, read from its files."""
        return open_run.patches_from(self.path) if self.path else []


def read(word: str, model: str, dtype: str | None) -> Subject:
    """Return the subject behind a word; nothing heavy is read.

    Args:
        word: a model's name, folder or checkpoint, a run's folder, or a patch file.
        model: the model that a patch file lies over.
        dtype: the precision; None takes that of a run, else float32.

    Raises:
        PalimpsestError: nothing of that name, a folder that is neither run nor model, or a run that
            drew no pictures of its own, is not finished, or has no patch.
    """
    path = Path(word)
    if path.is_dir() and not (path / "model_index.json").is_file():
        return _of_run(path, dtype)
    if path.is_file():
        from palimpsest.patch.patch import manifest
        from palimpsest.patch.tensor_files import is_safetensors

        named = path.suffix == ".safetensors"  # and torn, if it is none
        said = manifest(path) if named or is_safetensors(path) else None
        if said is not None:
            about = said.get("about", {})
            forgot = tuple(dict.fromkeys(_forgotten(about)))
            name = path.stem if path.stem != "patch" else str(about.get("run", path.stem))
            return Subject(name, _placed(model, dtype), model == "world", path, forgot)
    slip = path.parent != Path() and path.parent.is_dir()  # in a path, and no name of the Hub
    if not path.exists() and (slip or not HUB.fullmatch(word)):
        raise PalimpsestError(
            f"{word}: no such file or folder; name a model, a run's folder or a patch file"
        )
    return Subject(word, _placed(word, dtype), word == "world").unedited


def by_model(named: Sequence[Subject]) -> list[list[Subject]]:
    """Return the subjects of each model, its unedited self first, nobody twice."""
    found: dict[Named, list[Subject]] = {}
    for subject in named:
        some = found.setdefault(subject.model, [subject.unedited])
        if subject.path is not None and subject not in some:
            some.append(subject)
    return list(found.values())


def check(model: Diffusion, some: Sequence[Subject], concepts: Sequence[Concept]) -> None:
    """Refuse concepts that a model cannot read and patches of another, before anything is drawn.

    Raises:
        PalimpsestError: naming the concept or the subject.
    """
    from palimpsest.toolbox.checks import check_concepts

    for concept in concepts:
        check_concepts(model, [concept])
    for subject in some:
        try:
            with model.patched(*subject.patches()):
                pass
        except PalimpsestError as error:
            where = f"{subject.path}: "
            raise PalimpsestError(where + str(error).removeprefix(where)) from error


class Shelf:
    """Models one at a time: that which is there goes before the next one comes."""

    def __init__(self, place: machine.Machine) -> None:
        self.machine = place
        self.held: dict[Named, Diffusion] = {}

    def take(self, name: Named) -> Diffusion:
        """Return the model of that name, precision and files."""
        if name not in self.held:
            self.held.clear()
            self.held[name] = self.machine.load(*name[:2], dict(name[2]))
        return self.held[name]


def _of_run(folder: Path, dtype: str | None) -> Subject:
    if not (folder / "run.json").is_file():
        held = sorted(each.parent for each in folder.glob("*/run.json"))
        hint = f"; it holds runs: name them, such as {held[0]}" if held else ""
        raise PalimpsestError(
            f"{folder}: neither a run (it has no run.json) nor a model (it has no "
            f"model_index.json){hint}"
        )
    run = Run.open(folder)
    record = run.record()
    kind = record.kind
    if kind not in ("original", "erase", "recover"):
        raise PalimpsestError(
            f"{folder}: a run of kind {kind!r}; name an erasing or recovering run, a model or a "
            "patch file"
        )
    own = record.model
    model = own.name, dtype or own.dtype or "float32", tuple(sorted(own.files.items()))
    if kind == "original":
        return Subject("", model, model[0] == "world").unedited
    open_run.finished(run)
    world = open_run.of_world(record)
    forgot = record.names
    if record.answers or not run.path("patch.safetensors").is_file():
        open_run.patches_from(folder)  # says why there is none
    return Subject(run.name, model, world, folder, forgot)


def _placed(name: str, dtype: str | None) -> Named:
    """Return a model by the name that its runs have, too."""
    return machine.placed(name), dtype or "float32", ()


def _forgotten(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield the concepts of a patch, and of those that it was put together from."""
    yield from about.get("concepts", ())
    if "without" in about:  # a gold model's
        yield about["without"]
    if "of" in about:
        yield from _forgotten(about["of"])
    for part in about.get("sum", ()):
        yield from _forgotten(part)
