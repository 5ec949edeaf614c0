"""What a LLaVA answered before and after it forgot, picture by picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from palimpsest.report.load import Material, Picture
from palimpsest.report.sections.grid import MOST
from palimpsest.runs.rows import Answered

OWN = 16
"""Pictures of what is forgotten on show; the rest lies behind the fold."""


@dataclass(frozen=True)
class Card:
    """A picture with what was asked about it and answered before and after."""

    picture: Picture
    shows: str
    said: list[tuple[str, str, str]]
    """Each question, with the answer before and after."""

    @property
    def moved(self) -> bool:
        """Whether any answer is another now."""
        return any(before != after for _, before, after in self.said)


def answers(run: Material) -> dict[str, Any] | None:
    """Return the answers on show, picked by order alone, and the rest; None if there are none."""
    cards = list(_cards(run))
    if not cards:
        return None
    names = run.record.names
    own = [card for card in cards if card.shows in names]
    others = [card for card in cards if card.shows not in names]
    first = [*{card.shows: card for card in reversed(others)}.values()][::-1]
    rest = sorted((c for c in others if c not in first), key=lambda c: not c.moved)
    count = f"{len(own[:OWN])} of {len(own)} pictures, the first"
    asked = Counter(question for card in cards for question, *_ in card.said)
    return {
        "asked": asked.most_common(1)[0][0],
        "shown": [
            (f"Asked about {run.names}", count, own[:OWN]),
            ("Asked about everything else", "the first picture of each", first),
        ],
        "folded": [*own[OWN:], *rest][:MOST],
    }


def _cards(run: Material) -> Iterable[Card]:
    rows: dict[str, list[Answered]] = {}
    for row in run.run.values(Answered):
        rows.setdefault(row.file, []).append(row)
    for file, asked in rows.items():
        said = [(row.question, row.before, row.after) for row in asked]
        yield Card(Picture(run.run.kept(file), asked[0].shows, 0, 0), asked[0].shows, said)
