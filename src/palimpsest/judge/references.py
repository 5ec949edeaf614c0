"""A judge's entry in a record, and the judge that it names.

Nothing heavy is imported before a judge is loaded: commands ask here whose a record's judge is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Judge, Spec, TextJudge
from palimpsest.world import assets

if TYPE_CHECKING:
    from palimpsest.judge.clip import Clip
    from palimpsest.judge.world import Classifier

WORLD = "world"
"""The reference of the shipped judge and of the shipped CLIP."""

Entry = Mapping[str, Any]
"""The fields of a judge's spec, and `ref`, which older versions did not write."""


def entry_of(judge: Judge | TextJudge | None) -> dict[str, Any] | None:
    """Return a judge's entry in a record: its spec, and the reference that loads it, or None."""
    if judge is None:
        return None
    spec = asdict(judge.spec) | {"classes": [*judge.spec.classes]}
    return {**spec, "ref": getattr(judge, "ref", None)}


def reference(entry: Entry | None) -> str | None:
    """Return what loads a record's judge: `world`, a path or a Hub id; None where nothing does.

    A record without `ref` is an older one: there the spec's name says it.
    """
    if not entry or "ref" in entry:
        return entry["ref"] if entry else None
    name = str(entry.get("name"))
    if name in ("world judge", "world CLIP"):
        return WORLD
    return name.removeprefix("CLIP ") if name.startswith("CLIP ") else None


def load_judge(entry: Entry | None, device: str = "cpu") -> Classifier | None:
    """Load the judge that a record names; None where it names none.

    Raises:
        PalimpsestError: it has no reference, or the reference loads nothing or another judge.
    """
    if not entry:
        return None
    from palimpsest.judge.world import Classifier

    ref = _needed("judge", entry)
    try:
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
    return replace(clip, spec=replace(clip.spec, name=entry.get("name", clip.spec.name)))


def _needed(what: str, entry: Entry) -> str:
    ref = reference(entry)
    if ref is None:
        raise _refusal(what, entry, "nothing says where it lies")
    return ref


def _check(what: str, entry: Entry, spec: Spec, names: tuple[str, ...]) -> None:
    """Refuse a judge that differs from the record in one of these fields of its spec."""
    for name in names:
        found = getattr(spec, name)
        if entry.get(name, found) != found:
            raise _refusal(what, entry, f"its {name} there is {found!r}")


def _refusal(what: str, entry: Entry, why: str) -> PalimpsestError:
    return PalimpsestError(
        f"the {what} {entry.get('name')!r} v{entry.get('version', '?')}, which the record names, "
        f"cannot be loaded ({why}); do this in Python, with that {what}"
    )
