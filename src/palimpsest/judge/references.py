"""A judge's entry in a record, and the judge that it names.

Nothing heavy is imported before a judge is loaded: commands ask here whose a record's judge is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
    from palimpsest.judge.world import Classifier

    ref = _needed("judge", entry)
    try:
        if ref != WORLD and ref in JUDGES:
            judge = checked(JUDGES.load(ref)())
        else:
            judge = Classifier.load(assets.judge() if ref == WORLD else Path(ref), device)
    except PalimpsestError as error:
        raise _refusal("judge", entry, str(error)) from error
    _check("judge", entry, judge.spec, ("name", "version", "resolution"))
    return judge


def load_clip(entry: Entry | None, device: str = "cpu") -> Clip | None:
    """Load the CLIP that a record names, under the name that it has there; None where it has none.

    Raises:
        PalimpsestError: it has no reference, or the reference loads nothing or another CLIP.
    """
    if not entry:
        return None
    from palimpsest.judge.clip import Clip

    ref = _needed("CLIP", entry)
    try:
        clip = Clip.load(ref, device)
    except PalimpsestError as error:
        raise _refusal("CLIP", entry, str(error)) from error
    _check("CLIP", entry, clip.spec, ("name",) * (ref == WORLD) + ("version", "resolution"))
    return replace(clip, spec=replace(clip.spec, name=entry.name or clip.spec.name))


def _needed(what: str, entry: Entry) -> str:
    if entry.ref is None:
        raise _refusal(what, entry, "nothing says where it lies")
    return entry.ref


def _check(what: str, entry: Entry, spec: Spec, names: tuple[str, ...]) -> None:
    """Refuse a judge that differs from the record in one of these fields of its spec."""
    for name in names:
        found = getattr(spec, name)
        if (getattr(entry, name) or found) != found:
            raise _refusal(what, entry, f"its {name} there is {found!r}")


def _refusal(what: str, entry: Entry, why: str) -> PalimpsestError:
    return PalimpsestError(
        f"the {what} {entry.name!r} v{entry.version or '?'}, which the record names, "
        f"cannot be loaded ({why}); do this in Python, with that {what}"
    )
