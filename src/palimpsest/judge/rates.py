"""Rates by a judge: what an erasure leaves, what a recovery brings back, what a model can draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from palimpsest.core.concepts import Concept
from palimpsest.core.prompts import Prompt
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
    "Concept shown": "asked for the concept, the share of pictures in which the judge sees it. "
    "Low is thorough.",
}

THEME_MEANINGS = {
    "accuracy": "the share of pictures in which the judge sees the concept that was asked for."
}


@dataclass(frozen=True)
class Rates:
    """UA, IRA and CRA of erased concepts; of a recovery's answers, how often they are shown."""

    judge: Judge
    by: str = ""
    """What stands behind the numbers' names, to tell another judge's from the first one's."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """The judge's own."""
        return spec_text(self.judge.spec)

    def named(self, name: str, rate: rates.Rate, concept: str = "") -> Number:
        """Return a number that says whose it is."""
        return Number.of(name + self.by, rate, concept=concept)

    def collect(self, seen: Seen) -> Mapping[str, Any]:
        """Return what the judge says of each picture, by kind."""
        return seen.labels(seen.prompts, self.judge)

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Rates with Wilson intervals; of several concepts also the UA of each."""
        classes, clusters = self.judge.classes, [p.cluster for p in seen.prompts]
        known = [c for c in seen.task.concepts if c.name in classes.get(c.kind, ())]
        if seen.answered:
            return [
                self.named("Concept shown", rates.accuracy(c.kind, c.name, found, clusters))
                for c in known
            ]
        if not seen.own or not known:
            return []
        asks = [self._asks(p, seen, known) for p in seen.prompts]
        all_of = rates.unlearning([(c.kind, c.name) for c in known], asks, found, clusters)
        rows = [self.named(name, rate) for name, rate in all_of.items()]
        for concept in known if len(known) > 1 else ():
            alone = rates.unlearning([(concept.kind, concept.name)], asks, found, clusters)
            rows.append(self.named("UA", alone["UA"], concept.name))
        return rows

    def _asks(self, prompt: Prompt, seen: Seen, known: Sequence[Concept]) -> dict[str, str]:
        """Return what a prompt asks for of that which the judge can name.

        Nothing of one that asks for an erased concept which it cannot.
        """
        if seen.task.asked_by(prompt) and not any(prompt.wants(c.kind, c.name) for c in known):
            return {}
        classes = self.judge.classes
        return {k: name for k, name in prompt.asks.items() if name in classes.get(k, ())}


@dataclass(frozen=True)
class ThemeAccuracy(Rates):
    """How often the judge sees what was asked for, over all concepts and over each."""

    meanings = THEME_MEANINGS

    def collect(self, seen: Seen) -> dict[str, list[bool | None]]:
        """Concept → whether the judge sees it in each picture that was asked for it."""
        return {
            c.name: [rates.agrees(said, c.name) for said in seen.labels(own, self.judge)[c.kind]]
            for c, own in seen.by_concept
            if own and c.kind in self.judge.classes
        }

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Return the rate over all pictures, then that of each concept."""
        asked = {c.name: [p.cluster for p in own] for c, own in seen.by_concept if c.name in found}
        every = rates.rate(chain(*found.values()), [*chain(*asked.values())])
        each = {name: rates.rate(hits, asked[name]) for name, hits in found.items()}
        rows = [self.named("accuracy", rate, name) for name, rate in each.items()]
        return [self.named("accuracy", every), *rows]
