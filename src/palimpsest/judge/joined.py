"""Judges that see different things, joined into one: `vit:style50.pth+vit:style50_cls.pth`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.judge import JUDGES, Looking
from palimpsest.methods import Judge, Reading, Spec

if TYPE_CHECKING:
    from torch import Tensor


def parts(word: str) -> list[str]:
    """Return the names that a `+` joins; one in a path or a Hub id joins nothing."""
    return re.split(rf"\+(?=(?:{'|'.join(map(re.escape, JUDGES))})(?::|\+|$))", word)


class Joined(Looking):
    """Names what several judges see, each what no judge before it names."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = judges
        self.of = {kind: judge for judge in judges[::-1] for kind in judge.classes}
        self.classes = {kind: self.of[kind].classes[kind] for kind in sorted(self.of)}
        refs = [getattr(judge, "ref", None) for judge in judges]
        self.ref = "+".join(filter(None, refs)) if all(refs) else None
        specs = [judge.spec for judge in judges]
        if idle := [judge.spec.name for judge in judges if judge not in self.of.values()]:
            raise PalimpsestError(f"{idle[0]}: sees nothing that a judge before it does not name")
        names = tuple(name for names in self.classes.values() for name in names)
        self.spec = Spec(
            " and ".join(spec.name for spec in specs),
            "+".join(spec.version for spec in specs),
            max(spec.resolution for spec in specs),
            names,
            note="; ".join(filter(None, (spec.note for spec in specs))),
        )

    @property
    def fitted(self) -> dict[str, float] | None:
        """What was fitted for those that are fitted; None if none is."""
        found = [
            own for judge in self.judges if (own := getattr(judge, "fitted", None)) is not None
        ]
        return {kind: cut for own in found for kind, cut in own.items()} if found else None

    @fitted.setter
    def fitted(self, cuts: dict[str, float]) -> None:
        for judge in self._fit():
            judge.fitted = {k: v for k, v in cuts.items() if k in judge.classes}  # type: ignore[attr-defined]

    def _fit(self) -> list[Judge]:
        return [judge for judge in self.judges if hasattr(judge, "fit")]

    def fit(self, shown: Iterable[tuple[Tensor, Sequence[Prompt]]]) -> None:
        """Fit those that are fitted."""
        for judge in self._fit():
            judge.fit(shown)  # type: ignore[attr-defined]

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1], of any size."""
        said = {id(judge): judge.read(images) for judge in self.of.values()}
        readings = {kind: said[id(judge)] for kind, judge in self.of.items()}
        return Reading(
            {kind: reading.labels[kind] for kind, reading in readings.items()},
            {kind: reading.confidence[kind] for kind, reading in readings.items()},
        )
