"""UnlearnCanvas: every object in every style, and who of them still comes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd
from typing import ClassVar

from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt, folded
from palimpsest.core.registry import nearest
from palimpsest.data.unlearncanvas import OBJECTS, PHOTO, STYLES
from palimpsest.protocols.protocol import Protocol
from palimpsest.world import suite, vocabulary


@dataclass(frozen=True)
class UnlearnCanvas(Protocol):
    """UnlearnCanvas: every object in every style by five seeds, 100 DDIM steps at guidance 9.

    What an erasure leaves is counted on the pictures whose prompt asks for the erased concept (UA);
    these are no part of what it retains, of its own domain (IRA) and of the other (CRA). Of a
    subject that erased an object and a style, so are the pictures that ask for both, for one, and
    for neither.

    Source: Zhang et al., NeurIPS 2024, arXiv:2402.11846; OPTML-Group/UnlearnCanvas 19ed5e7, read
    2026-11-26.

    Lacking: the fine-tuned style50 checkpoint, both classifiers, and the authors' noise, which one
    generator of the GPU drew for all pictures of a seed; here one of the CPU does.
    """

    name: ClassVar = "unlearncanvas"
    draw: ClassVar = Draw(100, 9.0, sampler="ddim", noise="torch")
    judges: ClassVar = ("vit:style50.pth+vit:style50_cls.pth",)
    brought: ClassVar = ("style50.pth", "style50_cls.pth")
    file: ClassVar = "{style}_{object}_seed{seed}"

    @cached_property
    def everything(self) -> tuple[Concept, ...]:
        """The objects and the styles that are crossed: those named, all of a kind if none is."""
        styles, objects = self._names
        known = {folded(n): ("style", n) for n in styles}
        known |= {folded(n): ("object", n) for n in objects}
        found = [self._known(known, c.name) for c in self.concepts]
        kinds = {kind for kind, _ in found}
        found += [pair for pair in known.values() if pair[0] not in kinds]
        if self.world:
            return tuple(suite.concept(name) for _, name in sorted(found))
        return tuple(Concept(name, kind) for kind, name in sorted(found))  # type: ignore[arg-type]

    @property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (vocabulary.STYLES, vocabulary.OBJECTS) if self.world else (STYLES, OBJECTS)

    @staticmethod
    def _known(known: dict[str, tuple[str, str]], name: str) -> tuple[str, str]:
        if folded(name) not in known:
            names = [n for _, n in known.values()]
            raise PalimpsestError(f"UnlearnCanvas asks for no {name!r}{nearest(name, names)}")
        return known[folded(name)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every pair by every seed, in the authors' order; of `mini`, an even part of them."""
        styles, objects = self._names
        wanted = {c.name for c in self.everything}
        pairs = [(s, o) for s, o in product(styles, objects) if {s, o} <= wanted]
        order = {pair: i for i, pair in enumerate(product(styles, objects))}
        taken = [(k, pair) for k in suite.SEEDS for pair in pairs]
        if self.mini is not None:
            taken = self._even([s for s in styles if s in wanted], objects, wanted)
        return [self._prompt(s, o, k, order[s, o]) for k, (s, o) in taken]

    def _even(
        self, styles: list[str], objects: tuple[str, ...], wanted: set[str]
    ) -> list[tuple[int, tuple[str, str]]]:
        """Return a Latin design: every style as often, every object as often, seeds in turn."""
        styles = [s for s in styles if s != PHOTO] or styles
        own = [o for o in objects if o in wanted]
        step = len(own) // gcd(len(own), len(styles))  # the fewest that fill whole rounds
        each = max(step, (self.mini or 0) // step * step)
        each = min(each, len(own) * len(suite.SEEDS))
        rounds = [divmod(t, len(own)) for t in range(each * len(styles))]
        seeds = [suite.SEEDS[(t + r) % len(suite.SEEDS)] for t, (r, _) in enumerate(rounds)]
        return [(k, (styles[t // each], own[rounds[t][1]])) for t, k in enumerate(seeds)]

    def _prompt(self, style: str, thing: str, seed: int, index: int) -> Prompt:
        """Return one prompt; its index is its place among all pictures of the seed."""
        text = f"A {thing} image in {style} style."
        if self.world:
            text = suite.pair(thing, style, seed).text
        return Prompt(text, seed, index, asks={"object": thing, "style": style})
