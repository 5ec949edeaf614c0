"""What a campaign compares, as its YAML file says it, checked where it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.cli.named import kind_and_name
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.files import only_component, read_utf8
from palimpsest.core.registry import Registry, nearest
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.recover import RECOVERIES

MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Variant(Settings):
    """An eraser or a recovery with its settings; its name alone where all are a preset's."""

    method: str
    """Its name, of those in `palimpsest list`."""
    title: str = ""
    """What it is called; the method's own title when left out."""
    preset: str = "auto"
    """Whose values are the defaults, as of `--preset`."""
    settings: dict[str, Any] | None = None
    """Settings by name; `latents.steps` names one inside another."""
    flags: dict[str, Any] | None = None
    """Flags of its command, such as `subject: [erased]` of a recovery."""
    seeds: int | tuple[int, ...] | None = None
    """Its own seeds; those of the campaign when left out."""
    budget: int | None = None
    """Of a recovery: its own gradient evaluations; those of the campaign when left out."""
    only: tuple[str, ...] = ()
    """Of a recovery: the titles of the erasers that it attacks; all of them when left out."""
    least: ClassVar = {"budget": 1}


@dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """A model to erase from; its name alone where nothing differs."""

    name: str
    """As of `--model`: `world`, a Diffusers folder, a .safetensors checkpoint, or a Hub id."""
    title: str = ""
    """What it is called; its name when left out."""
    flags: dict[str, Any] | None = None
    """Flags of its erasures, such as `dtype: bfloat16`."""

    @property
    def called(self) -> str:
        """Its title, or its name."""
        return self.title or self.name


@dataclass(frozen=True, kw_only=True)
class Campaign(Settings):
    """Erasers × concepts × models × seeds, the recoveries that attack them, and who judges."""

    erasers: tuple[Variant, ...]
    """Erasers, each by name or as a mapping with `method`, `title`, `preset`, `settings`, `flags`
    and `seeds`."""
    concepts: dict[str, tuple[Any, ...]] | tuple[Any, ...]
    """Concepts as of `--concept`; a list within the list is erased together. In groups by name,
    such as `tuned` and `unseen`, they have a column each."""
    title: str = ""
    """What the comparison is called."""
    about: str = ""
    """A paragraph on it, for its page."""
    recoveries: tuple[Variant, ...] = ()
    """Recoveries that attack every erasure, written like erasers, with `budget` and `only`."""
    models: tuple[Model, ...] = (Model(name="world"),)
    """Models, each by name or as a mapping with `name`, `title` and `flags`."""
    seeds: int | tuple[int, ...] = 1
    """How many seeds every erasure, and every attack on it, is tried with, from 0 on; or which."""
    budget: int | None = None
    """Gradient evaluations of every recovery; for each prompt of one that attacks each by itself.
    When left out, each spends what its preset says."""
    judges: tuple[str, ...] = ("auto",)
    """Who looks at the pictures, as of `--judge`."""
    measures: tuple[str, ...] = ("UA", "IRA", "CRA")
    """The measures that the table shows."""
    flags: dict[str, Any] | None = None
    """Flags of every command, such as `device: cuda`."""
    runs: Path = Path()
    """The folder of the runs; `runs/` and the name of the file when left out."""
    page: Path | None = None
    """A Markdown file that takes the table, such as docs/results/erasers.md."""
    sheets: Path | None = None
    """A folder that takes a sheet of pictures for every eraser, before and after."""
    file: Path = Path()
    """Where it was read from; no key of it."""
    least: ClassVar = {"budget": 1}

    def __post_init__(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            PalimpsestError: naming the field.
        """
        if not all((self.erasers, self.models, self.groups, *self.groups.values())):
            raise PalimpsestError("erasers, models and concepts: name at least one of each")
        if not self.judges or not self.measures:
            raise PalimpsestError("judges and measures: name at least one, or leave the key out")
        if wrong := [group for group in self.groups if not isinstance(group, str)]:
            raise PalimpsestError(f"concepts: the group {wrong[0]!r} is no text; quote it")
        for title, names in (
            ("erasers", [variant_title(variant) for variant in self.erasers]),
            ("recoveries", [variant_title(variant, "recoveries") for variant in self.recoveries]),
            ("models", [model.called for model in self.models]),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise PalimpsestError(f"{title}: two are called {twice[0]!r}; give each a title")
        if twice := [name for name in self.measures if self.measures.count(name) > 1]:
            raise PalimpsestError(f"measures: {twice[0]!r} stands there twice")
        every = [
            frozenset(kind_and_name(name)[1] for name in names)
            for held in self.groups.values()
            for names in held
        ]
        if again := [names for names in every if every.count(names) > 1]:
            raise PalimpsestError(f"concepts: {' + '.join(sorted(again[0]))} stands there twice")
        for known in (self.seeds, *(v.seeds for v in (*self.erasers, *self.recoveries))):
            seeds_of(known if known is not None else 1)
        titles = [variant_title(variant, "erasers") for variant in self.erasers]
        if self.page is not None and (not self.page.name or self.page.is_dir()):
            raise PalimpsestError(f"page: {self.page} is a folder; name a Markdown file")
        if self.sheets is not None:
            if self.sheets.exists() and not self.sheets.is_dir():
                raise PalimpsestError(f"sheets: {self.sheets} is a file; name a folder")
            files = [sheet_name(title) for title in titles]
            if twice := [name for name in files if files.count(name) > 1]:
                raise PalimpsestError(f"sheets: two erasers would be {twice[0]}; give them titles")
        for recovery in self.recoveries:
            for name in recovery.only:
                if name not in titles:
                    raise PalimpsestError(f"only: no eraser {name!r}{nearest(name, titles)}")

    @property
    def groups(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Group → its concepts, each the names that are erased together."""
        held = self.concepts if isinstance(self.concepts, dict) else {"": self.concepts}
        return {name: tuple(map(_together, _listed(some, name))) for name, some in held.items()}


def variant_title(variant: Variant, sort: str = "erasers") -> str:
    """Return what a variant is called."""
    if variant.title:
        return variant.title
    kind = (ERASERS if sort == "erasers" else RECOVERIES).load(variant.method)
    title = getattr(kind, "title", "")
    return title if title and isinstance(title, str) else kind.__name__


def sheet_name(title: str) -> str:
    """Return the name of the file that takes an eraser's sheet of pictures."""
    return f"{only_component(title.lower().replace(' ', '-'))}.jpg"


def seeds_of(said: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return seeds: so many from 0 on, or those that are named.

    Raises:
        PalimpsestError: none, one below 0, or one twice.
    """
    if isinstance(said, int):
        if not 1 <= said <= MOST_SEEDS:
            raise PalimpsestError(f"seeds is {said}; it must be 1 to {MOST_SEEDS}, or a list")
        return tuple(range(said))
    if not said or min(said) < 0 or len({*said}) < len(said):
        raise PalimpsestError(f"seeds are {list(said)}; each must be at least 0 and named once")
    return said


def read(path: Path) -> Campaign:
    """Read a campaign's file.

    Raises:
        PalimpsestError: it is no YAML, a key or a method that there is not, or a value of another
            type; the sentence names the place, and what was probably meant.
    """
    import yaml

    text = read_utf8(path)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise PalimpsestError(f"{path}{place}: no YAML ({problem})") from None
    except (RecursionError, ValueError) as error:  # a date that there is not, say
        raise PalimpsestError(f"{path}: no YAML ({error})") from None
    try:
        found = _built(Campaign, data, "the file")
        own = found.runs if found.runs != Path() else Path("runs") / path.stem
        return replace(found, file=path, runs=own, title=found.title or path.stem)
    except PalimpsestError as error:
        raise PalimpsestError(f"{path}: {error}") from None


def _built(kind: type[Any], data: Any, place: str) -> Any:
    """Return a mapping as a dataclass; a text is one that says its first field alone.

    Raises:
        PalimpsestError: naming the place.
    """
    known = [f.name for f in fields(kind) if f.name != "file"]
    if isinstance(data, str) and kind is not Campaign:
        data = {known[0]: data}
    if not isinstance(data, Mapping):
        raise PalimpsestError(f"{place} is no mapping; write its keys, such as {known[0]}:")
    for name in data:
        if name not in known:
            raise PalimpsestError(f"{place}: no key {name!r}{nearest(str(name), known)}")
    own = {name: value for name, value in data.items() if value is not None}
    for f in fields(kind):
        if f.default is MISSING and f.name not in own:
            raise PalimpsestError(f"{place}: {f.name} is missing")
    parts: dict[str, tuple[type[Any], Registry | None]] = {
        "erasers": (Variant, ERASERS),
        "recoveries": (Variant, RECOVERIES),
        "models": (Model, None),
    }
    for name, (part, registry) in parts.items() if kind is Campaign else ():
        if name in own:
            own[name] = tuple(
                _of(registry, _built(part, each, f"{name}, number {i}"), f"{name}, number {i}")
                for i, each in enumerate(_listed(own[name], name), 1)
            )
    try:
        return kind(**own)
    except PalimpsestError as error:
        told = str(error).removeprefix(f"{kind.__name__}: ")
        raise PalimpsestError(told if kind is Campaign else f"{place}: {told}") from None


def _of(registry: Registry | None, built: Any, place: str) -> Any:
    """Return a variant whose method there is.

    Raises:
        PalimpsestError: there is none of that name, or it edits no text-to-image model.
    """
    if registry is None:
        return built
    try:
        registry.load(built.method)
    except PalimpsestError as error:
        raise PalimpsestError(f"{place}: {error}") from None
    if registry is ERASERS and built.method in ERASERS.own and built.method not in OF_DIFFUSION:
        raise PalimpsestError(f"{place}: {built.method} edits no text-to-image model")
    return built


def _listed(some: Any, name: str) -> Sequence[Any]:
    if isinstance(some, list | tuple):
        return some
    raise PalimpsestError(f"{name} is no list; write it as [first, second]")


def _together(said: Any) -> tuple[str, ...]:
    names = (said,) if isinstance(said, str) else said
    if not isinstance(names, list | tuple) or not names:
        raise PalimpsestError(f"concepts: {said!r} is no name; quote it if it is one")
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise PalimpsestError(f"concepts: {wrong[0]!r} is no name; quote it if it is one")
    if len({*names}) < len(names):
        raise PalimpsestError(f"concepts: {list(names)} names one twice")
    return tuple(names)
