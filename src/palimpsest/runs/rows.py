"""What the lines of a run's `.jsonl` files say, each as a value that was checked when it was read.

A line may say more than its type names; nobody here reads that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from palimpsest.core.files import is_component

SCORES = re.compile(r"scores(-[0-9a-f]{8})?\.jsonl")
"""The files of what judges said."""


@dataclass(frozen=True)
class OfPicture:
    """A line about one picture."""

    name: ClassVar[str]
    """The file whose lines are such."""
    file: str
    """The picture, `images/` and one name."""

    def __post_init__(self) -> None:
        """Refuse a picture of another place.

        Raises:
            TypeError: saying so.
        """
        if not self.file.startswith("images/") or not is_component(self.file[7:]):
            raise TypeError(f"file: {self.file!a} is no name of a file in images/")


@dataclass(frozen=True)
class Drawn(OfPicture):
    """A picture and what it was drawn from."""

    name: ClassVar = "images.jsonl"
    prompt: str
    seed: int
    index: int = 0
    guidance: float | None = None
    case: str = ""
    asks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored(OfPicture):
    """What the judge sees in a picture."""

    name: ClassVar = "scores.jsonl"
    labels: dict[str, str | None]
    """Kind → label; None where it could not judge."""
    confidence: dict[str, float] = field(default_factory=dict)
    """Kind → the probability of that label."""


@dataclass(frozen=True)
class Answered(OfPicture):
    """What was answered to a question about a picture before and after."""

    name: ClassVar = "answers.jsonl"
    shows: str
    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Logged:
    """A step of a method; its losses stand beside."""

    name: ClassVar = "log.jsonl"
    label: str | None = None
    step: int | None = None


FORMS = {form.name: form for form in (Drawn, Scored, Answered, Logged)}
"""File → what its lines are."""


def form_of(name: str) -> Any:
    """Return what the lines of a file are; other judges than the first have a file each."""
    return Scored if SCORES.fullmatch(name) else FORMS.get(name, dict[str, Any])
