"""A concept: what shall be forgotten, what takes its place, and the sentences that ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("a picture of {a} {name}", "{a} {name}", "{name}"),
    "style": ("a picture in {name} style", "{name} style", "{name}"),
    "identity": ("a portrait of {name}", "a picture of {name}", "the face of {name}", "{name}"),
    "hazard": ("a picture of {a} {name}", "{a} {name}", "{name}"),
    "watermark": ("a picture of the {name}", "the {name}", "{name}"),
}
"""The sentences that ask for a concept of each kind, most natural first.

None says *photo*: that is a style of its own, and a method that erases by these sentences would
take it along.
"""


@dataclass(frozen=True)
class Concept:
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
    def sentences(self) -> tuple[str, ...]:
        """Every template filled with the name, then with each synonym."""
        return tuple(
            sentence for name in (self.name, *self.synonyms) for sentence in ask(name, self.kind)
        )

    def prompts(self, n: int = 16, seed: int = 0) -> list[Prompt]:
        """`n` prompts that ask for it: the templates in turn, each round with a seed of its own."""
        sentences = ask(self.name, self.kind)
        rounds = [divmod(i, len(sentences)) for i in range(n)]
        return [Prompt(sentences[k], seed + r, asks={self.kind: self.name}) for r, k in rounds]


def ask(name: str, kind: Kind) -> tuple[str, ...]:
    """The sentences that ask for a thing of this kind."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return tuple(t.format(a=article, name=name) for t in TEMPLATES[kind])


def contains(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words, in any case."""
    whole, part = text.lower().split(), words.lower().split()
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def says(text: str, words: str) -> bool:
    """Whether a text holds the words as whole words, in any case and spacing."""
    inside = r"[\s_-]+".join(re.escape(part) for part in words.split())
    return bool(inside) and bool(re.search(rf"(?<!\w){inside}(?!\w)", text, re.IGNORECASE))
