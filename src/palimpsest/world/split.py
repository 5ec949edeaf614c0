"""Which of the world's concepts presets were tuned on, and which they are reported on besides."""

from __future__ import annotations

import random

from palimpsest.world.vocabulary import DOMAINS

TUNED = ("parachute", "van gogh", "mira voss", "hazard sign")
"""What the `world` presets were tuned on: of these alone a person looked at results."""
SEED = 20261126
"""Draws the others; it was fixed before any of them was run."""
DRAWN = {"object": 2, "style": 2, "identity": 1}
"""Kind → how many are drawn of it."""


def unseen() -> tuple[str, ...]:
    """Return the concepts that nobody tuned on, drawn from all others of the world."""
    draw = random.Random(SEED)
    return tuple(
        name
        for kind, n in DRAWN.items()
        for name in draw.sample([name for name in DOMAINS[kind] if name not in TUNED], n)
    )
