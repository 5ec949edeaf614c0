"""A judge's entry in a record, and the judge that it names.

Nothing heavy is imported before a judge is loaded: commands ask here whose a record's judge is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.typed import plain
from palimpsest.judge import JUDGES, Opening, open_judge
from palimpsest.methods import Judge, Spec, TextJudge

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
    """`world`, a file, a folder, a Hub id or a registered judge's name, with what it reads behind
    a colon; None where nothing does."""
    opened: Opening | None = field(default=None, hash=False)
    """What it was opened with, if its readings depend on that."""
    fitted: dict[str, float] = field(default_factory=dict, hash=False)
    """What was fitted on the unedited model's pictures, such as a threshold for each kind."""

    @property
    def key(self) -> str:
        """A short digest of all that its readings depend on."""
        text = json.dumps(plain(replace(self, ref=None)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def asked(self) -> Entry:
        """What is known of it before it is fitted, wherever it lies: a part of a run's identity."""
        return replace(self, ref=None, fitted={})


def entry_of(judge: Judge | TextJudge | None) -> Entry | None:
    """Return a judge's entry in a record, or None of none."""
    return None if judge is None else entry(judge)


def entry(judge: Judge | TextJudge) -> Entry:
    """Return a judge's entry in a record."""
    spec = replace(judge.spec, classes=tuple(judge.spec.classes))
    opened: Opening | None = getattr(judge, "opening", None)
    opened = opened and replace(opened, ref="", device="cpu")
    fitted = dict(getattr(judge, "fitted", None) or {})
    return Entry(**asdict(spec), ref=getattr(judge, "ref", None), opened=opened, fitted=fitted)


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

        if ref.partition(":")[0] not in JUDGES:
            return Classifier.load(Path(ref), device)
        judge = open_judge(ref, replace(entry.opened or Opening(), device=device))
        if entry.fitted:
            judge.fitted = dict(entry.fitted)  # type: ignore[attr-defined]
        return judge

    return _loaded("judge", entry, load)


def load_clip(
    entry: Entry | None, device: str = "cpu", judges: Iterable[Judge | None] = ()
) -> Clip | None:
    """Load the CLIP that a record names, under the name that it has there; None where it has none.

    Args:
        entry: the CLIP's.
        device: where it computes.
        judges: those that are loaded; the CLIP of one is not loaded again.

    Raises:
        PalimpsestError: it has no reference, or the reference loads nothing or another CLIP.
    """
    if not entry:
        return None

    there = {clip.ref: clip for judge in judges if (clip := getattr(judge, "clip", None))}

    def load(ref: str) -> Clip:
        from palimpsest.judge.clip import Clip

        clip = there.get(ref) or Clip.load(ref, device)
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
