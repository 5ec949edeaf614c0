"""Which way is good, and what short names of measures mean, as their meanings say it.

A meaning's first sentence says what is counted. A sentence that begins with High, Higher, Low or
Lower says which way is good; where it differs over the pictures of what was to be forgotten, it
goes on "over the concept low is thorough".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WAY = re.compile(r"(?:^|(?<=[.:;] ))(High|Low)(?:er)? ")
OWN_WAY = re.compile(r"over the concept (high|low) is ")
KEY = "↑ high and ↓ low are good in an erasure"
CONCEPT = ", concept"
"""Behind the name of a number over the pictures of what was to be forgotten."""


def arrow(name: str, meaning: str) -> str:
    """Return ↑ or ↓, whichever is good by a measure's meaning; nothing where neither is."""
    own = OWN_WAY.search(meaning) if name.endswith(CONCEPT) else None
    found = own or WAY.search(meaning)
    return "" if not found else "↑" if found[1].lower() == "high" else "↓"


def headed(name: str, meaning: str) -> str:
    """Return a number's name with the way that is good behind it."""
    return f"{name} {arrow(name, meaning)}".rstrip()


def legend(meanings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return name up to a comma → what it counts, each once, of names and their meanings."""
    found: dict[str, str] = {}
    for name, meaning in meanings:
        if meaning:
            found.setdefault(name.partition(",")[0], meaning.partition(". ")[0].rstrip("."))
    return found
