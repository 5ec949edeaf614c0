"""SRS-ME's evaluation of styles and objects."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt
from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class SRSME(Protocol):
    """SRS-ME: the bare name by 50 seeds, five pictures of each from one generator, LMS 100 steps.

    The authors' seeds stand in their table; without it 50 below 5000 are drawn for each concept.

    Source: Zhao et al., arXiv:2402.05947; Dlut-lab-zmn/SRS-ME 9343de1, e570d3b, read 2026-11-26.

    Lacking: their classifiers (ResNet-18 of ten styles, ResNet-50 of nine objects): train one with
    palimpsest train-judge, on pictures of the unedited model as they did.
    """

    name: ClassVar = "srs_me"
    draw: ClassVar = Draw(100, 7.5, sampler="lms", noise="torch")
    judges: ClassVar = ("hf:FOLDER",)
    brought: ClassVar = ("FOLDER",)
    kind: ClassVar[Kind] = "style"
    own: ClassVar = (
        *("Cezanne", "VanGogh", "Picasso", "Jackson Pollock", "Caravaggio", "KeithHaring"),
        *("Kelly McKernan", "Tyler Edlin", "Kilian Eng"),
    )
    asked: ClassVar = 50
    samples: ClassVar = 5

    def made(self) -> list[Prompt]:
        """Return the bare name of each concept by as many seeds, those of a concept all others."""
        return [p for c in self.everything for p in self._by_seeds(c)]

    def _by_seeds(self, concept: Concept) -> list[Prompt]:
        seeds = random.Random(f"{self.seed} {concept.name}").sample(range(5000), self.asked)
        return [Prompt(concept.name, k, asks={concept.kind: concept.name}) for k in seeds]
