"""Flags of every command that takes a table of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli.console import warn
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Names, Part, Prompt, folded, read_prompts
from palimpsest.world import suite

FLAGS = {"column": "column", "from_row": "from", "to_row": "to"}
"""Field of `Table` → its flag, without dashes."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Which column and rows of a table of prompts are taken."""

    column: str | None = None
    """Of a table of prompts: the column that holds them, where it is not called `prompt`."""
    from_row: Annotated[int | None, tyro.conf.arg(name="from")] = None
    """Of a table of prompts: the first row to take, counted as a spreadsheet does and as warnings
    do; the header is row 1."""
    to_row: Annotated[int | None, tyro.conf.arg(name="to")] = None
    """Of a table of prompts: the last row to take, itself included."""

    def table(self, path: Path | None, flag: str, names: Names | None) -> dict[int, Prompt]:
        """Return row → prompt, nothing without a table; what is not used is said on stderr.

        Args:
            path: the table.
            flag: what names it.
            names: of the concepts that it may ask for.

        Raises:
            PalimpsestError: it cannot be read, no such rows, or a flag of a table where there
                is none.
        """
        if path is None:
            if given := [told for name, told in FLAGS.items() if getattr(self, name) is not None]:
                raise PalimpsestError(
                    f"--{given[0]} is of a table of prompts; name one with {flag}"
                )
            return {}
        first = 2 if self.from_row is None else self.from_row
        if first < 2 or (self.to_row is not None and self.to_row < first):
            told = f"--from {first}" + (f" --to {self.to_row}" if self.to_row is not None else "")
            raise PalimpsestError(
                f"{told}: no rows of prompts; they begin with row 2, and --to is the last one taken"
            )
        return read_prompts(path, Part(self.column, first, self.to_row), names, warn)


def names_of(concepts: Sequence[Concept], world: bool) -> Names:
    """Return every name of some concepts, and of the world's if they are its."""
    found = {folded(name): (suite.kind_of(name), name) for name in suite.NAMES} if world else {}
    return found | {folded(name): (c.kind, c.name) for c in concepts for name in c.names}
