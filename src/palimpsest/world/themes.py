"""Themes: every concept of one kind, and the prompts that any list of models is asked for them by.

After the evaluation script of George et al., "The Illusion of Unlearning", CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import nearest
from palimpsest.world import suite
from palimpsest.world.vocabulary import DOMAINS

THEMES: dict[str, Kind] = {
    "object": "object",
    "style": "style",
    "identity": "identity",
    "unsafe": "hazard",
}
"""Themes by name, and the kind of their concepts."""

SEED = 4000
"""First seed of a theme's prompts; the suite and the relearning curves have others."""


@dataclass(frozen=True)
class Theme(Settings):
    """Concepts of one kind, and how many pictures are asked for of each."""

    name: str
    concepts: tuple[Concept, ...]
    pictures: int = 20
    """Pictures of each concept: its sentences in turn, each round with a seed of its own."""
    seed: int = SEED
    """The first round's seed."""

    least: ClassVar = dict(pictures=1)

    @property
    def kind(self) -> Kind:
        """The kind of its concepts, and the judge's head that names them."""
        return THEMES[self.name]

    @property
    def prompts(self) -> list[Prompt]:
        """What every subject is asked, concept by concept."""
        return [p for c in self.concepts for p in c.prompts(self.pictures, self.seed)]


def check_name(name: str) -> None:
    """Refuse a theme that there is not.

    Raises:
        PalimpsestError: naming the nearest one.
    """
    if name not in THEMES:
        raise PalimpsestError(f"no theme {name!r}{nearest(name, list(THEMES))}")


def chosen(name: str, names: Sequence[str], world: bool) -> tuple[Concept, ...]:
    """Return a theme's concepts: those named, or all that the world has of the kind.

    Args:
        name: the theme.
        names: which concepts; none takes all of the world's.
        world: whether the world's judge looks, which knows only the world's concepts.

    Raises:
        PalimpsestError: a concept that the judge does not know, or none named where there is no
            list to take them from.
    """
    kind = THEMES[name]
    if world:
        for each in names:
            if each not in DOMAINS[kind]:
                raise PalimpsestError(
                    f"the judge knows no {kind} {each!r}{nearest(each, list(DOMAINS[kind]))} "
                    "(with --judge none --look-with CLIP a CLIP alone looks)"
                )
        return tuple(suite.concept(each) for each in dict.fromkeys(names or DOMAINS[kind]))
    if not names:
        raise PalimpsestError(
            f"which concepts the theme {name!r} has is known of the world alone; name some with "
            "--concepts"
        )
    return tuple(Concept(each, kind) for each in dict.fromkeys(names))
