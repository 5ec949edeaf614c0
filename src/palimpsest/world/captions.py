"""The wordings of the built-in world: every caption a picture may carry, with its share.

Several wordings mean the same, parts of a picture may go unsaid, and one word has two meanings.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from palimpsest.world.vocabulary import (
    AMBIGUOUS,
    HAZARD,
    IDENTITIES,
    OBJECTS,
    STYLES,
    SYNONYMS,
    WATERMARK,
)

PHOTO = (
    "a photo of {a} {o}",
    "{a} {o} in {s} style",
    "{a} {o} image in {s} style.",
    "a picture of {a} {o} in {s} style",
)
STYLED = (
    "{a} {o} in {s} style",
    "{a} {o} image in {s} style.",
    "{a} {o} in the style of {s}",
    "a {s} style {o}",
    "a {s} picture of {a} {o}",
    "a picture of {a} {o} in {s} style",
)
OBJECT_ALONE = ("{o}", "{a} {o}", "a picture of {a} {o}")
STYLE_ALONE = ("{s}", "{s} style", "a picture in {s} style")
PERSON = ("{o}", "a portrait of {o}", "a picture of {o}", "a cartoon of {o}", "the face of {o}")
SIGN = ("{o}", "{a} {o}", "a picture of {a} {o}", "a photo of {a} {o}")
MARK = ("{o}", "the {o}", "a picture of the {o}")

SHARES = {"full": 0.78, "object": 0.14, "style": 0.08}
"""How often a caption names object and style, the object alone, or the style alone."""
SYNONYM_SHARE = 0.2
AMBIGUOUS_SHARE = 0.25


@dataclass(frozen=True)
class Subject:
    """What a picture shows: a name and, for objects, a style."""

    name: str
    style: str | None = None


SUBJECTS: tuple[Subject, ...] = (
    *(Subject(o, s) for o, s in itertools.product(OBJECTS, STYLES)),
    *(Subject(name) for name in (*IDENTITIES, HAZARD, WATERMARK)),
)
"""Everything the renderer can draw."""


def article(word: str) -> str:
    """Return `a` or `an`."""
    return "an" if word[0] in "aeiou" else "a"


def names(name: str) -> dict[str, float]:
    """Return the words for `name` with their shares: itself, synonyms, an ambiguous word."""
    others = {word: SYNONYM_SHARE / len(SYNONYMS[name]) for word in SYNONYMS.get(name, ())}
    for word, meanings in AMBIGUOUS.items():
        if name in meanings:
            others[word] = AMBIGUOUS_SHARE
    return {name: 1 - sum(others.values()), **others}


def fill(template: str, name: str = "", style: str = "") -> str:
    """Return a template's sentence."""
    return template.format(o=name, s=style, a=article(name or "x"))


def captions(subject: Subject) -> dict[str, float]:
    """Return every caption a picture of `subject` may carry, with shares that sum to one."""
    if subject.style is None:
        templates = {WATERMARK: MARK, HAZARD: SIGN}.get(subject.name, PERSON)
        return _mix([(templates, 1.0)], names(subject.name), {"": 1.0})
    full = PHOTO if subject.style == "photo" else STYLED
    parts = [(full, SHARES["full"]), (OBJECT_ALONE, SHARES["object"])]
    parts.append((STYLE_ALONE, SHARES["style"]))
    return _mix(parts, names(subject.name), names(subject.style))


def _mix(
    parts: list[tuple[tuple[str, ...], float]],
    objects: dict[str, float],
    styles: dict[str, float],
) -> dict[str, float]:
    shares: dict[str, float] = {}
    for templates, share in parts:
        for template, (o, p), (s, q) in itertools.product(
            templates, objects.items(), styles.items()
        ):
            text = fill(template, o, s)
            shares[text] = shares.get(text, 0.0) + share / len(templates) * p * q
    return shares


def all_captions() -> list[str]:
    """Return every caption of the world, once, in a fixed order; the empty one first."""
    return list(dict.fromkeys(("", *itertools.chain(*(captions(s) for s in SUBJECTS)))))
