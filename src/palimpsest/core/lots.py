"""Long rows in parts, so that no more of what they stand for is held than one part's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

LOT = 64
"""Pictures that are held at once."""


def lots(items: Sequence[T], size: int = LOT) -> Iterator[Sequence[T]]:
    """Yield items in their order, at most so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
