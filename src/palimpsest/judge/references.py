"""A judge's entry in a record, and the judge that it names.

Nothing heavy is imported before a judge is loaded: commands ask here whose a record's judge is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import JUDGES, checked
from palimpsest.methods import Judge, Spec, TextJudge
from palimpsest.world import assets

if TYPE_CHECKING:
    from palimpsest.judge.clip import Clip

WORLD = "world"
"""The reference of the shipped judge and of the shipped CLIP."""


@dataclass(frozen=True)
class Entry(Spec):
    """What a record says of a judge: its spec, as far as it is known, and what loads it again."""

    name: str = ""
    version: str = ""
    resolution: int = 0
    ref: str | None = None
    """`world`, a file, a folder, a Hub id or a registered judge's name; None where nothing does."""


def entry_of(judge: Judge | TextJudge | None) -> Entry | None:
    """Return a judge's entry in a record, or None of none."""
    if judge is None:
        return None
    spec = replace(judge.spec, classes=tuple(judge.spec.classes))
    return Entry(**asdict(spec), ref=getattr(judge, "ref", None))


def named(name: str) -> Entry:
    """Return the entry of a judge of which a record says nothing but its name."""
    if name in ("world judge", "world CLIP"):
        return Entry(name, ref=WORLD)
    return Entry(name, ref=name.removeprefix("CLIP ") if name.startswith("CLIP ") else None)


def load_judge(entry: Entry | None, device: str = "cpu") -> Judge | None:
    """Load the judge that a record names; None where it names none.

    Raises:
        PalimpsestError: it has no reference, or the reference loads nothing or another judge.
    """
    if not entry:
        return None

    def load(ref: str) -> Judge:
        from palimpsest.judge.world import Classifier

        if ref != WORLD and ref in JUDGES:
            return checked(JUDGES.load(ref)())
        return Classifier.load(assets.judge() if ref == WORLD else Path(ref), device)

    return _loaded("judge", entry, load)


def load_clip(entry: Entry | None, device: str = "cpu") -> Clip | None:
    """Load the CLIP that a record names, under the name that it has there; None where it has none.

    Raises:
        PalimpsestError: it has no reference, or the reference loads nothing or another CLIP.
    """
    if not entry:
        return None

    def load(ref: str) -> Clip:
        from palimpsest.judge.clip import Clip

        clip = Clip.load(ref, device)
        known = ref == WORLD or not entry.name  # else any name, which the CLIP then takes over
        return clip if known else replace(clip, spec=replace(clip.spec, name=entry.name))

    return _loaded("CLIP", entry, load)


def _loaded(what: str, entry: Entry, load: Callable[[str], Any]) -> Any:
    """Load a judge by its reference, and refuse one whose spec differs from the record's."""
    try:
        if entry.ref is None:
            raise PalimpsestError("nothing says where it lies")
        found = load(entry.ref)
        for name in ("name", "version", "resolution"):
            there = getattr(found.spec, name)
            if (getattr(entry, name) or there) != there:
                raise PalimpsestError(f"its {name} there is {there!r}")
        return found
    except PalimpsestError as error:
        raise PalimpsestError(
            f"the {what} {entry.name!r} v{entry.version or '?'}, which the record names, "
            f"cannot be loaded ({error}); do this in Python, with that {what}"
        ) from error
