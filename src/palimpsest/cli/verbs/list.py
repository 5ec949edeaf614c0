"""`palimpsest list`."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.cli import telling
from palimpsest.cli.tree import Call
from palimpsest.erase import ERASERS, OF_CLIP, OF_DIFFUSION, OF_LLAVA
from palimpsest.judge import JUDGES, MEASURES, by_name
from palimpsest.protocols import PROTOCOLS
from palimpsest.recover import RECOVERIES
from palimpsest.world.vocabulary import DOMAINS, GROUPS


@dataclass(frozen=True)
class List:
    """The methods, judges, measures and protocols there are, and the built-in world's concepts."""

    def __call__(self, call: Call) -> None:
        """Print them; nothing heavy is imported."""
        theirs = [name for name in ERASERS if name not in ERASERS.own]
        for title, words, registry, names in (
            ("Erasers", "erase METHOD", ERASERS, [*OF_DIFFUSION, *theirs]),
            ("Recoveries", "recover METHOD", RECOVERIES, [*RECOVERIES]),
            ("Erasers of CLIP", "erase METHOD --model clip:…", ERASERS, [*OF_CLIP]),
            ("Erasers of LLaVA", "erase METHOD --model llava:…", ERASERS, [*OF_LLAVA]),
            ("Judges", "… --judge NAME, or NAME:WHAT", JUDGES, [*JUDGES]),
            ("Measures", "judge RUN --measures NAME, or NAME:FILE", MEASURES, [*by_name()]),
            ("Protocols", "evaluate protocol:NAME SUBJECT…", PROTOCOLS, [*PROTOCOLS]),
        ):
            told = [(name, registry.summary(name)) for name in names]
            telling.names(f"{title} (palimpsest {words})", told)
        rows: list[tuple[str, str]] = []
        for kind, names in DOMAINS.items():
            if kind == "object":
                rows += [(kind, f"{', '.join(g)}  ({kin})") for kin, g in GROUPS.items()]
            else:
                rows.append((kind, ", ".join(names)))
        telling.names("Concepts of the built-in world", rows, 10)
