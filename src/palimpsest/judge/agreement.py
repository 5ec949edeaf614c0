"""How far two judges agree about the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.judge import spec_text
from palimpsest.methods import Judge, Number, Seen
from palimpsest.metrics.agreement import kappa
from palimpsest.metrics.clusters import Cluster

MEANINGS = {
    "κ": "how far two judges agree beyond chance about the same pictures: Cohen's κ of what they "
    "name in them, over this model's pictures and the unedited one's. 1 is always, 0 as by chance."
}


@dataclass(frozen=True)
class Agreement:
    """Cohen's κ of two judges' labels (Cohen 1960), for each kind of what is forgotten.

    Traps: κ is low where nearly every picture shows the same, however seldom they differ, and it
    says nothing of who is right.
    """

    first: Judge
    second: Judge
    named: bool = False
    """Whether the numbers say with whom, since there are more."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """Both judges' own."""
        return f"{spec_text(self.first.spec)}; {spec_text(self.second.spec)}"

    def collect(self, seen: Seen) -> dict[str, list[tuple[str | None, str | None, Cluster]]]:
        """Kind → what both say of each picture whose prompt asks for one, and its cluster."""
        found = {}
        both = self.first.classes.keys() & self.second.classes.keys()
        for kind in dict.fromkeys(c.kind for c in seen.task.concepts if c.kind in both):
            prompts = [p for p in seen.prompts if kind in p.asks]
            if prompts:
                said = (seen.labels(prompts, judge)[kind] for judge in (self.first, self.second))
                found[kind] = list(zip(*said, [p.cluster for p in prompts], strict=True))
        return found

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return κ with its interval for each kind."""
        other = beside("unedited") or {}
        of = f", with {self.second.spec.name}" if self.named else ""
        rows = []
        for kind, said in found.items():
            every = said if other is found else [*said, *other.get(kind, ())]
            ours, theirs, clusters = zip(*every, strict=True)
            rows.append(Number.of(f"κ, {kind}{of}", kappa(ours, theirs, clusters), ""))
        return rows
