"""Make a CLIP forget, and measure zero-shot what it still names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from palimpsest.data.pairs import Exam, Pairs
from palimpsest.methods import Task
from palimpsest.metrics import rates
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.runs.lessons import LessonBench, number
from palimpsest.toolbox.clip_losses import zero_shot


@dataclass
class ClipBench(LessonBench[ContrastiveEncoder, Exam]):
    """A CLIP and the folder where runs go."""

    kind: ClassVar[str] = "clip"

    def measure(self, run: Run, patch: Patch, task: Task, exam: Exam) -> dict[str, Any]:
        """Zero-shot accuracies and membership inference, before and after."""
        baseline = self.numbers(task, exam)
        with self.model.patched(patch):
            return {"baseline": baseline, "numbers": self.numbers(task, exam)}

    def numbers(self, task: Task, exam: Exam) -> list[dict[str, Any]]:
        """Zero-shot accuracies of the model as it stands, and membership inference."""
        ranks = zero_shot(self.model, exam.test)
        gone = [label in task.names for label in exam.test.labels]
        own = [rank for rank, is_gone in zip(ranks, gone, strict=True) if is_gone]
        rest = [rank for rank, is_gone in zip(ranks, gone, strict=True) if not is_gone]
        spec = f"zero-shot over {len(exam.test.prompts)} classes, {self.model.side} px"
        found = [
            number("forget accuracy @1", rates.rate(r < 1 for r in own), spec),
            number("forget accuracy @5", rates.rate(r < 5 for r in own), spec),
            number("retain accuracy @1", rates.rate(r < 1 for r in rest), spec),
            number("retain accuracy @5", rates.rate(r < 5 for r in rest), spec),
        ]
        if exam.outside is not None:
            members, others = self._losses(task.sets()[0]), self._losses(exam.outside)
            rate = rates.membership(members, others, seed=self.seed)
            told = "threshold on 1 − cos, 10 halvings, ± one standard deviation"
            found.append(number("membership inference", rate, told))
        return found

    def _losses(self, pairs: Pairs) -> list[float]:
        """1 − cos of every picture with its own caption."""
        cosine = (self.model.images(pairs.images) * self.model.texts(pairs.texts)).sum(-1)
        return (1 - cosine).tolist()
