"""What is asked about pictures, and what counts as naming what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from palimpsest.core.concepts import says
from palimpsest.core.kinds import Kind
from palimpsest.data.pairs import Labelled

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = "What is shown in this picture?"
DRAWN = "What style is the picture in?"
WHO = "What is the name of the person in the picture?"

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "object": (SHOWN,),
    "style": (DRAWN,),
    "identity": (WHO, SHOWN),
    "hazard": (SHOWN,),
    "watermark": (SHOWN,),
}
"""What is asked about a picture of something, by its kind. The world's LLaVA knows these words."""


class Answers(Protocol):
    """A model that answers questions about pictures."""

    def ask(self, images: Tensor, question: Sequence[str]) -> list[str]:
        """Answer each question about its picture, (n, 3, side, side)."""
        ...


@dataclass(frozen=True)
class Quiz(Labelled):
    """Pictures of known classes with what is asked about each."""

    kinds: Mapping[str, Kind]
    """Class → its kind."""
    questions: Mapping[Kind, tuple[str, ...]]
    """Kind → what is asked about every picture of its classes."""

    def asks(self, label: str) -> tuple[str, ...]:
        """Return what is asked about a picture of a class."""
        return self.questions[self.kinds[label]]

    def put(self, model: Answers) -> list[list[str]]:
        """Return the model's answers about each picture, in the order of its questions."""
        asked = [(i, q) for i, label in enumerate(self.labels) for q in self.asks(label)]
        said = model.ask(self.images[[i for i, _ in asked]], [q for _, q in asked])
        answers: list[list[str]] = [[] for _ in self.labels]
        for (i, _), answer in zip(asked, said, strict=True):
            answers[i].append(answer)
        return answers


def betrays(answers: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether any answer about a picture says one of the words."""
    return any(says(answer, *words) for answer in answers)


def names(answers: Sequence[str], label: str) -> bool:
    """Return whether every answer about a picture names its class."""
    return all(says(answer, label) for answer in answers)


def counted(
    quiz: Quiz,
    answers: Sequence[Sequence[str]],
    gone: Sequence[str],
    synonyms: Sequence[str] = (),
) -> tuple[list[bool], dict[str, list[bool]]]:
    """Count where answers say what is forgotten, and where they name what else is shown.

    Args:
        quiz: the pictures.
        answers: for each picture, what was answered about it.
        gone: the classes that are forgotten.
        synonyms: other words for them.

    Returns:
        One verdict for each picture of these classes, and by class one for each other picture.
    """
    words = (*gone, *synonyms)
    forgotten: list[bool] = []
    others: dict[str, list[bool]] = {}
    for label, said in zip(quiz.labels, answers, strict=True):
        if label in gone:
            forgotten.append(betrays(said, words))
        else:
            others.setdefault(label, []).append(names(said, label))
    return forgotten, others
