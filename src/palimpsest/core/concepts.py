"""A concept: what shall be forgotten, what takes its place, and the sentences that ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from palimpsest.core.errors import Settings
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("a picture of {a} {name}", "{a} {name}", "{name}"),
    "style": ("a picture in {name} style", "{name} style", "{name}"),
    "identity": ("a portrait of {name}", "a picture of {name}", "the face of {name}", "{name}"),
    "hazard": ("a picture of {a} {name}", "{a} {name}", "{name}"),
    "watermark": ("a picture of the {name}", "the {name}", "{name}"),
}
"""The sentences that ask for a concept of each kind, most natural first, the bare name last.

None says *photo*: that is a style of its own, and a method that erases by these sentences would
take it along.
"""


class Wording(NamedTuple):
    """A sentence that asks for a concept, with the one that asks for its anchor in the same way."""

    sentence: str
    words: str
    """The concept's own words in the sentence: its name or a synonym."""
    anchor_sentence: str
    """The empty prompt, if the concept has no anchor."""
    anchor: str
    """The anchor's words in its sentence; empty, if there is none."""


@dataclass(frozen=True)
class Concept(Settings):
    """Something a model may be made to forget. It knows no model."""

    name: str
    """The concept's name, as a prompt would say it."""
    kind: Kind = "object"
    """What sort of thing it is; decides the sentences that ask for it."""
    anchor: str | None = None
    """What takes its place; None lets the method or the model choose."""
    keep: tuple[str, ...] = ()
    """Names or sentences whose meaning must not move, for the methods that hold some."""
    synonyms: tuple[str, ...] = ()
    """Other words for the same thing, to be forgotten with it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then each synonym."""
        return (self.name, *self.synonyms)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every template filled with the name, then with each synonym."""
        return tuple(sentence for name in self.names for sentence in ask(name, self.kind))

    @property
    def wordings(self) -> list[Wording]:
        """The `sentences` in their order, each with the anchor's of the same template."""
        anchor = self.anchor or ""
        theirs = ask(anchor, self.kind) if anchor else ("",) * len(TEMPLATES[self.kind])
        return [
            Wording(sentence, name, other, anchor)
            for name in self.names
            for sentence, other in zip(ask(name, self.kind), theirs, strict=True)
        ]

    def prompts(self, n: int = 16, seed: int = 0) -> list[Prompt]:
        """Return `n` prompts that ask for it: templates in turn, each round with its own seed."""
        sentences = ask(self.name, self.kind)
        rounds = [divmod(i, len(sentences)) for i in range(n)]
        return [Prompt(sentences[k], seed + r, asks={self.kind: self.name}) for r, k in rounds]


def ask(name: str, kind: Kind) -> tuple[str, ...]:
    """Return the sentences that ask for a thing of this kind."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return tuple(t.format(a=article, name=name) for t in TEMPLATES[kind])


def says(text: str, *names: str) -> bool:
    """Return whether a text says any of the names.

    It says one whose words stand in it as whole words and in their order: in any case, with any
    spaces, underscores, hyphens or other marks around and between them, and with the last one in
    the singular or in a plural in -s or -es. *Van_Gogh's* says *van gogh*, *hot-dogs* says *hot
    dog*; *parachutist* does not say *parachute*. No text says an empty name.
    """
    return any(bool(name.strip()) and bool(_pattern(name).search(text)) for name in names)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    letter = r"[^\W_]"
    words = re.findall(f"{letter}+", name) or name.split()  # a name may be all marks
    inside = r"[\W_]+".join(map(re.escape, words))
    return re.compile(f"(?<!{letter}){inside}(?:e?s)?(?!{letter})", re.IGNORECASE)
