"""What a folder of runs compares: its title, its groups of concepts, and what runs are called."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record

NAME = "campaign.json"
"""Where it stands, beside the runs."""


@dataclass(frozen=True)
class Compared:
    """What a campaign says of its runs."""

    title: str = ""
    about: str = ""
    groups: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """A group, such as `tuned`, → its concepts, each the names that are erased together."""
    called: dict[str, str] = field(default_factory=dict)
    """A run's folder → the title of its eraser or its recovery, such as `ESD-u`."""

    def write(self, folder: Path) -> None:
        """Write it beside the runs of a folder."""
        page = asdict(self)
        write_text(folder / NAME, json.dumps(page, indent=1, ensure_ascii=False) + "\n")

    def group(self, names: Iterable[str]) -> str:
        """Return the group of concepts that were erased together; empty if they are in none."""
        own = {name.casefold() for name in names}
        found = (
            group
            for group, held in self.groups.items()
            if any({name.casefold() for name in some} == own for some in held)
        )
        return next(found, "")


def titled(run: Run) -> Record:
    """Return a run's record, under the title that a campaign gave it, if one did.

    Raises:
        PalimpsestError: no run lies there.
    """
    record, title = run.record(), ""
    with suppress(PalimpsestError):  # whatever else is called campaign.json
        title = _read(run.folder.parent / NAME).called.get(run.folder.name, "")
    return replace(record, title=title) if title else record


def read(folders: Iterable[Path]) -> Compared:
    """Return what folders of runs compare: the groups of all, and the title if they have one.

    Raises:
        PalimpsestError: what one of them says is no such thing.
    """
    found = [_read(folder / NAME) for folder in dict.fromkeys(folders)]
    titles = [each.title for each in found if each.title]
    abouts = [each.about for each in found if each.about]
    groups: dict[str, tuple[tuple[str, ...], ...]] = {}
    for each in found:
        for group, held in each.groups.items():
            groups[group] = tuple(dict.fromkeys((*groups.get(group, ()), *held)))
    called = {name: title for each in found for name, title in each.called.items()}
    return Compared(titles[0] if len(titles) == 1 else "", "\n".join(abouts), groups, called)


def _read(path: Path) -> Compared:
    if not path.is_file():
        return Compared()
    page = read_object(path)
    try:
        held = {
            str(group): tuple(tuple(map(_text, names)) for names in some)
            for group, some in page["groups"].items()
        }
        called = {name: _text(title) for name, title in page.get("called", {}).items()}
        return Compared(_text(page["title"]), _text(page["about"]), held, called)
    except (LookupError, TypeError, AttributeError):
        raise PalimpsestError(f"{path}: not what a campaign says of its runs") from None


def _text(said: object) -> str:
    if not isinstance(said, str):
        raise TypeError
    return said
