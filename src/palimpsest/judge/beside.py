"""Numbers of each picture and the unedited model's of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.core.prompts import Prompt
from palimpsest.judge import Counting
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates

if TYPE_CHECKING:
    from torch import Tensor


class Beside:
    """What measures that compare pictures one by one share; pictures are read as they are needed.

    Their numbers are means over the prompts that ask for the concept and over the others, with
    Student's interval within the range of the values.
    """

    title: ClassVar[str]
    """What it is called."""
    meaning: ClassVar[str]
    """What its numbers count, and which way is good."""
    spec: str
    """What compares."""
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    """The least and the largest value of a picture."""

    @property
    def meanings(self) -> dict[str, str]:
        """What its numbers say."""
        return {self.title: self.meaning}

    @classmethod
    def open(cls, counting: Counting) -> Beside:
        """Open it by its name; it needs nothing."""
        return cls()

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return (n,) values of pictures, (n, 3, height, width) in [0, 1], beside others."""
        raise NotImplementedError

    def collect(self, seen: Seen) -> Seen:
        """Return whose pictures they are."""
        return seen

    def numbers(self, seen: Seen, found: Seen, beside: Callable[[str], Any]) -> list[Number]:
        """Return the means; none of the unedited model itself, and none of answers."""
        other = beside("unedited")
        if other is None or other is found or seen.answered:
            return []
        parts = {"others": seen.rest, "concept": seen.own}
        return [self._mean(name, found, other, some) for name, some in parts.items() if some]

    def _mean(self, part: str, ours: Seen, theirs: Seen, prompts: list[Prompt]) -> Number:
        values, size = [], ""
        for i in range(0, len(prompts), 32):
            some = prompts[i : i + 32]
            pictures = ours.pictures(some)
            values += self.compare(pictures, theirs.pictures(some)).tolist()
            size = f"{pictures.shape[-1]} px"
        mean = rates.mean(values, [p.cluster for p in prompts], self.range)
        return replace(Number.of(f"{self.title}, {part}", mean, ""), spec=size)
