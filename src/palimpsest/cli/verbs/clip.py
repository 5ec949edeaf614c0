"""`palimpsest clip METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.cli.sets import Forget
from palimpsest.cli.tree import Call
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_CLIP
from palimpsest.methods import Measure, Task


@dataclass(frozen=True, kw_only=True)
class Clip(Forget):
    """Make a CLIP forget names, and see zero-shot what it still knows."""

    model_kind: ClassVar[str] = "clip"
    methods: ClassVar[Registry] = replace(
        ERASERS, noun="eraser of CLIP", own=OF_CLIP, aliases={"salun": "salun_clip"}
    )

    runs: Path = Path("runs/clip")
    """The folder where runs are kept."""

    def __call__(self, call: Call) -> int:
        """Forget, measure, and show the numbers; 3 if a search did not reach its end."""
        return self.tell(self.forgotten(call, self.runs), "still named")

    def sets(self, model: Any) -> tuple[Task, list[Measure]]:
        """Return what is learnt from, and zero-shot accuracies; on the world also membership."""
        from palimpsest.judge.membership import Membership
        from palimpsest.judge.zero_shot import ZeroShot
        from palimpsest.world.datasets import world_pairs

        forget, retain = self.captioned(model.side)
        validation, test = self.labelled(model.side)
        measures: list[Measure] = [ZeroShot(test)]
        if self.classes is None:
            outside = world_pairs(self.concept, len(forget), self.seed, use="test")
            measures.append(Membership(outside, self.seed))
        return Task(self.concepts(), forget, retain, validation), measures
