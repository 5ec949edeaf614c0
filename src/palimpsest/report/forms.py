"""The forms that results are written in, by the suffix of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.registry import nearest


def check_form(out: Path, forms: Iterable[str]) -> None:
    """Refuse a file of a form that there is not.

    Args:
        out: the file.
        forms: the suffixes that there are.

    Raises:
        PalimpsestError: naming the forms.
    """
    if out.suffix not in (known := list(forms)):
        raise PalimpsestError(
            f"{out}: no page can be written as {out.suffix or 'a file without a suffix'!r}"
            f"{nearest(out.suffix, known)}"
        )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    told = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in told]
