"""Rates by a judge: what an erasure leaves, what a recovery brings back, what a model can draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.judge import spec_text
from palimpsest.methods import Judge, Number, Seen
from palimpsest.metrics import rates

MEANINGS = {
    "UA": "unlearning accuracy: asked for the erased concept, the share of pictures in which "
    "the judge no longer sees it. High is thorough.",
    "IRA": "in-domain retain accuracy: asked for other concepts of the same domain, the share "
    "that the judge names right. High is gentle.",
    "CRA": "cross-domain retain accuracy: concepts of all other domains, the share that the "
    "judge names right. High is gentle.",
    "Concept shown": "asked for the concept, the share of pictures in which the judge sees it.",
}

THEME_MEANINGS = {
    "accuracy": "the share of pictures in which the judge sees the concept that was asked for."
}


@dataclass(frozen=True)
class Rates:
    """UA, IRA and CRA of erased concepts; of a recovery's answers, how often they are shown."""

    judge: Judge

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """The judge's own."""
        return spec_text(self.judge.spec)

    def collect(self, seen: Seen) -> Mapping[str, Any]:
        """Return what the judge says of each picture, by kind."""
        return seen.labels(seen.prompts)

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Rates with Wilson intervals; of several concepts also the UA of each."""
        known = [c for c in seen.task.concepts if c.kind in self.judge.classes]
        if seen.answered:
            return [
                Number.of("Concept shown", rates.accuracy(c.kind, c.name, found)) for c in known
            ]
        if not seen.own:
            return []
        asks = [p.asks for p in seen.prompts]
        all_of = rates.unlearning([(c.kind, c.name) for c in seen.task.concepts], asks, found)
        rows = [Number.of(name, rate) for name, rate in all_of.items()]
        for concept in known if len(known) > 1 else ():
            alone = rates.unlearning([(concept.kind, concept.name)], asks, found)
            rows.append(Number.of("UA", alone["UA"], concept=concept.name))
        return rows


@dataclass(frozen=True)
class ThemeAccuracy(Rates):
    """How often the judge sees what was asked for, over all concepts and over each."""

    meanings = THEME_MEANINGS

    def collect(self, seen: Seen) -> dict[str, list[bool | None]]:
        """Concept → whether the judge sees it in each picture that was asked for it."""
        return {
            c.name: [rates.agrees(said, c.name) for said in seen.labels(own)[c.kind]]
            for c, own in seen.by_concept
        }

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the rate over all pictures, then that of each concept."""
        every = rates.rate(hit for hits in found.values() for hit in hits)
        rows = [Number.of("accuracy", rates.rate(h), concept=name) for name, h in found.items()]
        return [Number.of("accuracy", every), *rows]
