"""Make a LLaVA forget a name, and keep what it answers about pictures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from palimpsest.data.questions import Quiz, counted
from palimpsest.methods import Eraser, Task
from palimpsest.metrics import rates
from palimpsest.models.llava import Answerer
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.runs.images import save_png
from palimpsest.runs.lessons import LessonBench, number
from palimpsest.runs.runner import measured

Answers = Sequence[Sequence[str]]
"""For each picture, what was said to each question about it."""


@dataclass
class LlavaBench(LessonBench[Answerer, Quiz]):
    """A LLaVA and the folder where runs go."""

    kind: ClassVar[str] = "llava"

    def measure(self, run: Run, patch: Patch, task: Task, exam: Quiz) -> dict[str, Any]:
        """How often names are said, before and after; the answers are written down word for word.

        They lie in `answers.jsonl`, the pictures in `images`.
        """
        with measured(run, "answers"):
            before = exam.put(self.model)
            with self.model.patched(patch):
                after = exam.put(self.model)
        for i, image in enumerate(exam.images):
            save_png(image.float() / 255, run.path(_file(i)))
        run.write_rows("answers.jsonl", _rows(exam, before, after))
        return {
            "baseline": self.numbers(task, exam, before),
            "numbers": self.numbers(task, exam, after),
        }

    def numbers(self, task: Task, exam: Quiz, answers: Answers) -> list[dict[str, Any]]:
        """Shares of pictures: a name counts as said if any answer says it, as right if all do."""
        forgotten, others = counted(exam, answers, task.names, task.synonyms)
        spec = f"greedy answers, whole words, {self.model.side} px"
        found = [
            number("name said", rates.rate(forgotten), spec),
            number("others named", rates.rate(chain(*others.values())), spec),
        ]
        kinds = list(dict.fromkeys(exam.kinds[label] for label in others))
        for kind in kinds if len(kinds) > 1 else ():
            own = (right for label, right in others.items() if exam.kinds[label] == kind)
            found.append(number(f"others named, {kind}", rates.rate(chain(*own)), spec))
        return found

    def config(self, name: str, method: Eraser, task: Task, exam: Quiz) -> dict[str, Any]:
        """All that the run depends on; what is asked, too."""
        asked = {label: list(exam.asks(label)) for label in dict.fromkeys(exam.labels)}
        return {**super().config(name, method, task, exam), "questions": asked}


def _file(place: int) -> str:
    return f"images/{place:05d}.png"


def _rows(exam: Quiz, before: Answers, after: Answers) -> Iterator[dict[str, Any]]:
    for i, label in enumerate(exam.labels):
        for question, was, now in zip(exam.asks(label), before[i], after[i], strict=True):
            row = {"file": _file(i), "shows": label, "question": question}
            yield {**row, "before": was, "after": now}
