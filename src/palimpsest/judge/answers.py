"""What a LLaVA answers about pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from palimpsest.data.questions import Quiz, counted
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates

Said = Sequence[Sequence[str]]
"""For each picture, what was answered to each question about it."""


MEANINGS = {
    "name said": "pictures of what is to be forgotten of which any answer says the name. Low "
    "is thorough.",
    "others named": "pictures of everything else of which all answers say what they show. High "
    "is gentle.",
}


@dataclass(frozen=True)
class Answers:
    """How often a LLaVA says what was forgotten, and names everything else."""

    quiz: Quiz
    """The pictures, and what is asked about each."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """How it answers, how answers are read, and the pictures' size."""
        return f"greedy answers, whole words, {self.quiz.images.shape[-1]} px"

    @property
    def about(self) -> dict[str, Any]:
        """Which pictures are shown, and what is asked about each class."""
        asked = {label: self.quiz.asks(label) for label in dict.fromkeys(self.quiz.labels)}
        return {
            "test": len(self.quiz),
            "questions": asked,
            "files": {"test": self.quiz.digest},
        }

    def collect(self, seen: Seen) -> Said:
        """Return every answer, word for word."""
        return self.quiz.put(seen.model)

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return shares of pictures: a name is said if any answer says it, and right if all do."""
        forgotten, others = counted(self.quiz, found, seen.task.names, seen.task.synonyms)
        rows = [
            Number.of("name said", rates.rate(forgotten)),
            Number.of("others named", rates.rate(chain(*others.values()))),
        ]
        kinds = list(dict.fromkeys(self.quiz.kinds[label] for label in others))
        for kind in kinds if len(kinds) > 1 else ():
            own = (right for label, right in others.items() if self.quiz.kinds[label] == kind)
            rows.append(Number.of(f"others named, {kind}", rates.rate(chain(*own))))
        return rows

    def files(self, before: Said, after: Said) -> Iterator[tuple[str, Any]]:
        """Yield the pictures, and a row for each question with both answers."""
        rows = []
        for i, (label, image) in enumerate(zip(self.quiz.labels, self.quiz.images, strict=True)):
            file = f"images/{i:05d}.png"
            yield file, image.float() / 255
            for question, was, now in zip(self.quiz.asks(label), before[i], after[i], strict=True):
                row = {"file": file, "shows": label, "question": question}
                rows.append({**row, "before": was, "after": now})
        yield "answers.jsonl", rows
