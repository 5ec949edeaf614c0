"""`palimpsest clip METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from palimpsest.cli import console, session
from palimpsest.cli.sets import Forget
from palimpsest.cli.tree import Call
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_CLIP

if TYPE_CHECKING:
    from palimpsest.data.pairs import Exam
    from palimpsest.methods import Task


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
        self.refuse()
        session.runs_folder(self.runs)
        session.silence()
        from palimpsest.core.memory import set_baseline
        from palimpsest.models.loading import load_clip
        from palimpsest.runs.clip_lessons import ClipBench

        set_baseline()
        model = load_clip(self.model, device=self.device, dtype=self.dtype or "float32")
        task, exam = self._sets(model.side)
        bench = ClipBench(self.runs, model, console.progress(), call.command, self.seed)
        run = bench.erase(call.name, call.method, task, exam, preset=call.preset)
        return self.tell(run, "still named")

    def _sets(self, side: int) -> tuple[Task, Exam]:
        from palimpsest.data.pairs import Exam
        from palimpsest.methods import Task
        from palimpsest.world.datasets import world_pairs

        forget, retain = self.captioned(side)
        validation, test = self.labelled(side)
        outside = None
        if self.classes is None:
            outside = world_pairs(self.concept, len(forget), self.seed, use="test")
        return Task(self.concepts(), forget, retain, validation), Exam(test, outside)
