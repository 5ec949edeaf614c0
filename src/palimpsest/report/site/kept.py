"""What an erasure leaves of each other concept: which neighbours suffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from palimpsest.methods import Number
from palimpsest.metrics import rates
from palimpsest.report.load import Key, Material, Picture, Target


@dataclass(frozen=True)
class Kept:
    """One concept that was not to be forgotten."""

    kind: str
    name: str
    share: Number
    """Pictures asked for it in which the judge names it."""
    before: Number | None
    """The same of the unedited model, on the same prompts and seeds."""
    near: bool
    """Whether it is of an erased concept's domain."""

    @property
    def lost(self) -> float:
        """What the erasure took, −1 to 1; against all of them where nobody looked before."""
        return (self.before.value if self.before else 1.0) - self.share.value


def kept(run: Material, unedited: Material | None) -> list[Kept]:
    """Return what is left of each concept that prompts ask for besides the erased ones.

    Those of the erased concepts' domains come first, and those that lost most first among them.
    """
    target, before = run.target, unedited.pictures if unedited else {}
    asked: dict[tuple[str, str], list[Key]] = {}
    for key, picture in run.pictures.items():
        if not target.asked(picture):
            for what in picture.asks.items():
                asked.setdefault(what, []).append(key)
    found = [_kept(what, keys, run.pictures, before, target) for what, keys in asked.items()]
    seen = [each for each in found if each is not None]
    return sorted(seen, key=lambda each: (not each.near, -each.lost, each.name))


def _kept(
    what: tuple[str, str],
    keys: list[Key],
    after: Mapping[Key, Picture],
    before: Mapping[Key, Picture],
    target: Target,
) -> Kept | None:
    kind, name = what
    share = _share(what, [after[key] for key in keys])
    if share is None:
        return None
    return Kept(
        kind,
        name,
        share,
        _share(what, [before[key] for key in keys if key in before]),
        kind in target.kinds,
    )


def _share(what: tuple[str, str], pictures: list[Picture]) -> Number | None:
    kind, name = what
    judged = [p for p in pictures if kind in p.labels]
    rate = rates.rate(
        (rates.agrees(p.labels[kind], name) for p in judged), [p.cluster for p in judged]
    )
    return Number.of(name, rate) if rate.n else None
