"""`palimpsest list`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from palimpsest.cli.tree import Call
from palimpsest.erase import ERASERS
from palimpsest.erase.clip import CLIP_ERASERS
from palimpsest.erase.llava import LLAVA_ERASERS
from palimpsest.recover import RECOVERIES
from palimpsest.world.vocabulary import DOMAINS, GROUPS


@dataclass(frozen=True)
class List:
    """The methods there are, and the concepts of the built-in world."""

    def __call__(self, call: Call) -> None:
        """Print them; nothing heavy is imported."""
        lines = []
        for title, verb, registry in (
            ("Erasers", "erase", ERASERS),
            ("Recoveries", "recover", RECOVERIES),
            ("Erasers of CLIP", "clip", CLIP_ERASERS),
            ("Erasers of LLaVA", "llava", LLAVA_ERASERS),
        ):
            lines.append(f"{title} (palimpsest {verb} METHOD):")
            lines += [f"  {name:<10} {registry.summary(name)}" for name in registry]
            lines.append("")
        lines.append("Concepts of the built-in world:")
        for kind, names in DOMAINS.items():
            if kind == "object":
                lines += [f"  {kind:<10} {', '.join(g)}  ({kin})" for kin, g in GROUPS.items()]
            else:
                lines.append(f"  {kind:<10} {', '.join(names)}")
        sys.stdout.write("\n".join(lines) + "\n")
