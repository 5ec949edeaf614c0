"""The papers behind the methods, each by its BibTeX key."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).with_suffix(".bib")
"""All of them, as LaTeX reads them."""
ENTRIES = {
    key: entry.strip()
    for entry in FILE.read_text(encoding="utf-8").split("\n\n")
    for key in re.findall(r"@\w+\{([^,]+),", entry)
}


def cite(key: str) -> str:
    """Return the BibTeX entry of a key."""
    return ENTRIES[key]
