"""`palimpsest cite METHOD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from palimpsest.cli import telling
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.registry import nearest
from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES


@dataclass(frozen=True)
class Cite:
    """How to cite methods, as BibTeX."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="METHOD…")]
    """Methods by name; `palimpsest list` shows them."""

    def __call__(self, call: Call) -> None:
        """Print an entry per method."""
        if not self.names:
            raise PalimpsestError("needs METHOD (see palimpsest cite --help)")
        entries = []
        for name in self.names:
            every = (ERASERS, RECOVERIES)
            homes = [registry for registry in every if name in registry]
            if not homes:
                known = list(dict.fromkeys(name for registry in every for name in registry))
                raise PalimpsestError(f"no method {name!r}{nearest(name, known)}")
            entries += [registry.load(name).bibtex for registry in homes]
        telling.result("\n\n".join(dict.fromkeys(entries)))
