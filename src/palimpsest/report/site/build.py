"""Write a site: pages first, the index last, and then what is left of runs that are gone goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from palimpsest.core import hashes
from palimpsest.core.atomic import TEMPORARY, sweep, write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import beside, is_component, read_object, read_utf8
from palimpsest.core.locks import Tell, output_lock
from palimpsest.report import charts
from palimpsest.report.arrange import Section, arrange, expand
from palimpsest.report.load import Material
from palimpsest.report.site import index, pairs, single
from palimpsest.report.site.pictures import Pictures
from palimpsest.runs import groups as campaigns
from palimpsest.runs.groups import Compared

MARK = "site.json"
"""What tells a site of ours from another folder."""


@dataclass(frozen=True)
class Story:
    """What the page of a run tells: the run, with what belongs to it."""

    run: Material
    section: Section


def write_site(runs: Sequence[Path], folder: Path, tell: Tell = lambda sentence: None) -> Path:
    """Write a folder of pages about runs, which a browser opens from the disk or from any host.

    A run's page is `runs/NAME/index.html`, NAME being its folder's. Written anew, only what has
    changed is written, each file whole; pictures of other pages stay as they are.

    Args:
        runs: run folders, or folders that hold some; what they refer to is shown, too.
        folder: a new or an empty folder, or a site that was written before.
        tell: takes a sentence if another process is writing it.

    Returns:
        The index.

    Raises:
        PalimpsestError: a path is no run, a run has nothing to show, or the folder holds other
            things or cannot be written.
    """
    folder = Path(folder)
    check(folder)
    compared = campaigns.read(path.parent for path in expand(list(runs)))
    sections = arrange(list(runs))
    told: dict[str, Story] = {}
    for story in stories(sections):
        told.setdefault(story.run.run.name, story)
    for name in told:
        if not is_component(name):
            raise PalimpsestError(f"{name!a}: no name that a folder of the site can have")
    with output_lock(folder, tell):
        check(folder)
        _write(sections, told, folder, compared)
    return folder / "index.html"


def check(folder: Path) -> None:
    """Refuse a place that is no site of ours and not empty.

    Raises:
        PalimpsestError: saying so.
    """
    inside = folder.iterdir() if folder.is_dir() else ()
    if any(not TEMPORARY.fullmatch(path.name) for path in inside) and not _ours(folder):
        raise PalimpsestError(
            f"{folder}: holds other files and no site of Palimpsest; name a new or an empty folder"
        )
    if folder.exists() and not folder.is_dir():
        raise PalimpsestError(f"{folder}: is a file; name a folder for the site")
    for path in (folder / "runs", folder / "pictures"):
        if path.is_symlink():
            raise PalimpsestError(f"{path}: a link, which no site has; remove it")


def stories(sections: Sequence[Section]) -> Iterator[Story]:
    """Yield what every run's page tells; a run that several sections have comes with each."""
    for section in sections:
        if section.erasure:
            yield Story(section.erasure, section)
        for run, _, on in section.attempts:
            yield Story(run, _of_attempt(section, run, on))
        for run in section.replays:
            yield Story(run, Section(section.unedited, replays=[run]))
        for run in section.others:
            yield Story(run, Section(section.unedited, others=[run]))
        if section.gold:
            yield Story(section.gold, Section(section.unedited, section.gold))
        if section.unedited and not section.lesson:
            yield Story(section.unedited, Section(section.unedited))


def _of_attempt(section: Section, run: Material, on: str) -> Section:
    """Return a section with one attempt and what it is held against."""
    if on == "erased":
        twins = [m for m in [section.twin(run)] if m]
        controls = [m for m in [section.control(run)] if m]
        return Section(section.unedited, section.erasure, [run], controls, section.gold, twins)
    return Section(section.unedited, recoveries=[run], gold=section.gold if on == "gold" else None)


def assets() -> dict[str, str]:
    """Return the site's style sheet and its script."""
    return {
        f"site.{kind}": beside(charts.__file__, f"chart.{kind}") + beside(__file__, f"site.{kind}")
        for kind in ("css", "js")
    }


def _write(
    sections: Sequence[Section], told: dict[str, Story], folder: Path, compared: Compared
) -> None:
    pictures = Pictures(folder / "pictures")
    version = metadata.version("palimpsest-ml")
    _keep(folder / MARK, json.dumps({"palimpsest": version, "runs": sorted(told)}, indent=1) + "\n")
    sweep(folder)
    groups = pairs.groups(sections)
    with hashes.late("Pages", len(told) + len(groups)) as advance:
        every = {name: story.run for name, story in told.items()}
        for name, story in told.items():
            page = single.page(story.run, story.section, every, pictures, compared)
            _keep(folder / "runs" / name / "index.html", page)
            advance(1)
        paired = pairs.comparisons(groups, folder / pairs.NAME, advance)
    _keep(folder / pairs.NAME, json.dumps(paired) + "\n")
    for name, text in assets().items():
        _keep(folder / name, text)
    side_by_side = [each for each in paired.values() if each["numbers"]]
    text = index.page(sections, every, groups, side_by_side, pictures, compared)
    _keep(folder / "index.html", text)
    pictures.sweep()
    _sweep(folder / "runs", set(told))


def _keep(path: Path, text: str) -> None:
    """Write a text, unless it lies there already."""
    with suppress(PalimpsestError):
        if not path.is_symlink() and read_utf8(path) == text:
            return
    write_text(path, text)


def _sweep(folder: Path, names: set[str]) -> None:
    """Take away the pages of runs that are gone; what is not ours stays."""
    for place in [place for place in folder.iterdir() if place.name not in names]:
        if place.is_dir() and not place.is_symlink():
            (place / "index.html").unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else
                place.rmdir()


def _ours(folder: Path) -> bool:
    with suppress(PalimpsestError):
        return "palimpsest" in read_object(folder / MARK)
    return False
