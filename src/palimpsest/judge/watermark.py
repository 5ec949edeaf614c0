"""Whether a watermark's pictures stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.data.images import as_bytes
from palimpsest.judge import Counting
from palimpsest.methods import Number, Seen
from palimpsest.metrics import rates

MARK = "watermark"
"""The kind of concept."""

MEANINGS = {
    "watermark kept": "pictures of the watermark's prompts that are the unedited model's, bit "
    "by bit. If all are, every distance between the two is 0, the Fréchet distance too. "
    "High is gentle.",
    "watermark moved": "by how many of 255 grey levels the pictures of the watermark's prompts "
    "are off the unedited model's: the mean of a pixel, and the largest of all. Low is "
    "gentle.",
}


@dataclass(frozen=True)
class Watermark:
    """How many pictures of the watermark's prompts are the unedited model's, bit by bit.

    The claim of SRS-ME: a watermark that stands among what is maintained is drawn as before, at a
    Fréchet distance of 0.

    Traps: it tells whether pictures are the same, not whether they still show the watermark.
    """

    words: str = ""
    """What a watermark's prompt says; without, the prompts that ask for the kind `watermark`."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """Which prompts count, and what is compared."""
        return f"8-bit pictures of prompts with {self.words or 'a watermark'!r}"

    @classmethod
    def open(cls, counting: Counting) -> Watermark:
        """Open it; what stands behind the colon are the watermark's words."""
        return cls(counting.ref)

    def collect(self, seen: Seen) -> Any:
        """Return the watermark's pictures as bytes, (n, 3, height, width), and their clusters.

        Raises:
            PalimpsestError: no prompt asks for a watermark.
        """
        own = self.refuse(seen)
        return as_bytes(seen.pictures(own)), [p.cluster for p in own]

    def refuse(self, seen: Seen) -> list[Prompt]:
        """Return the prompts that ask for a watermark, refused if there are none.

        Raises:
            PalimpsestError: saying what is missing.
        """
        said = self.words.lower()
        own = [p for p in seen.prompts if (said in p.text.lower() if said else MARK in p.asks)]
        if not own:
            what = f"says {self.words!r}" if self.words else f"asks for the kind {MARK!r}"
            raise PalimpsestError(f"no prompt of the run {what}; draw some: watermark:WORDS counts")
        return own

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the share of pictures that are the same, and how far the others are off."""
        other = beside("unedited")
        if other is None or other is found or seen.answered:
            return []
        (ours, clusters), (theirs, _) = found, other
        away = (ours.int() - theirs.int()).abs().flatten(1)
        mean = rates.mean(away.double().mean(1).tolist(), clusters, (0, 255))
        return [
            Number.of("watermark kept", rates.rate((away == 0).all(1).tolist(), clusters)),
            Number.of("watermark moved, mean", mean, ""),
            Number("watermark moved, largest", float(away.max()), n=len(away)),
        ]
