"""The world's concepts and the prompts that they are judged by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from palimpsest.core.concepts import Concept, ask
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import nearest
from palimpsest.world.captions import fill
from palimpsest.world.vocabulary import (
    DOMAINS,
    GROUPS,
    HAZARD,
    OBJECTS,
    STYLES,
    SYNONYMS,
    WATERMARK,
)

SEEDS = (188, 288, 588, 688, 888)
"""UnlearnCanvas' seeds; with more pictures wanted they go on from 1000."""

NAMES = [name for names in DOMAINS.values() for name in names]
"""All concepts of the world."""

SENTENCE = "{a} {o} image in {s} style."
"""UnlearnCanvas' prompt."""


def kind_of(name: str) -> Kind:
    """Return the domain of a concept.

    Raises:
        PalimpsestError: the world has no such concept.
    """
    for kind, names in DOMAINS.items():
        if name in names:
            return kind  # type: ignore[return-value]
    raise PalimpsestError(f"the world has no concept {name!r}{nearest(name, NAMES)}")


def concept(name: str, anchor: str | None = None) -> Concept:
    """Return a concept of the world with its synonyms and everything else to keep."""
    kind = kind_of(name)
    known = list(dict.fromkeys((*DOMAINS[kind], *anchors(name))))
    if anchor is not None and anchor not in known:
        what = kind if len(DOMAINS[kind]) > 1 else "object"
        raise PalimpsestError(
            f"the anchor {anchor!r} is no {what} of the world{nearest(anchor, known)}"
        )
    keep = [
        sentence
        for other_kind, others in DOMAINS.items()
        for other in others
        if other not in (name, anchor)
        for sentence in ask(other, other_kind)[:2]  # type: ignore[arg-type]
    ]
    return Concept(name, kind, anchor, tuple(keep), SYNONYMS.get(name, ()))


def anchors(name: str) -> tuple[str, ...]:
    """Return what may take a concept's place: its visual kin, else its domain, else any object."""
    for group in GROUPS.values():
        if name in group:
            return tuple(other for other in group if other != name)
    return tuple(other for other in DOMAINS[kind_of(name)] if other != name) or OBJECTS


def seeds(n: int) -> tuple[int, ...]:
    """Return the first `n` seeds of the suite."""
    return (*SEEDS, *range(1000, 1000 + max(0, n - len(SEEDS))))[:n]


def pair(name: str, style: str, seed: int) -> Prompt:
    """UnlearnCanvas' prompt for an object in a style."""
    return Prompt(fill(SENTENCE, name, style), seed, asks={"object": name, "style": style})


def single(name: str, seed: int, wording: int = 0) -> Prompt:
    """Return a prompt for an identity, the hazard or the watermark."""
    kind = kind_of(name)
    sentences = ask(name, kind)
    return Prompt(sentences[wording % len(sentences)], seed, asks={kind: name})


def whole(n: int) -> list[Prompt]:
    """Return every object in every style, and all else, `n` seeds each."""
    singles = (*DOMAINS["identity"], HAZARD, WATERMARK)
    rows = [pair(o, s, k) for k in seeds(n) for o, s in itertools.product(OBJECTS, STYLES)]
    return rows + [single(name, k, i) for i, k in enumerate(seeds(4 * n)) for name in singles]


def suite(what: Concept | Sequence[Concept], asked: int = 48, rounds: int = 1) -> list[Prompt]:
    """Return the prompts that an erasure of one concept, or of several, is judged by.

    Args:
        what: what was erased.
        asked: how many prompts ask for each, at least.
        rounds: seeds of everything else.
    """
    concepts = (what,) if isinstance(what, Concept) else what
    own = dict.fromkeys(p for concept in concepts for p in _asking(concept, asked))
    others = [p for p in whole(rounds) if not any(p.wants(c.kind, c.name) for c in concepts)]
    return [replace(p, case=str(i)) for i, p in enumerate([*own, *others])]


def _asking(concept: Concept, n: int) -> list[Prompt]:
    """Return at least `n` prompts that ask for a concept."""
    if concept.kind == "object":
        return [pair(concept.name, s, k) for k in seeds(-(-n // len(STYLES))) for s in STYLES]
    if concept.kind == "style":
        return [pair(o, concept.name, k) for k in seeds(-(-n // len(OBJECTS))) for o in OBJECTS]
    return [single(concept.name, k, i) for i, k in enumerate(seeds(n))]
