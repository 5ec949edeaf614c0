"""What every protocol is: whom it asks for, by which prompts, how drawn and by whom judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

from palimpsest.core.concepts import Concept, says
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.files import parse_object, read_utf8
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt
from palimpsest.protocols import PREFIX
from palimpsest.world import suite
from palimpsest.world.vocabulary import DOMAINS

T = TypeVar("T")
TEXTS = (".txt", ".json")
"""Files of prompts that are no tables: one a line, or COCO's captions."""


@dataclass(frozen=True)
class Protocol(Settings):
    """An evaluation as its authors published it, for a list of concepts.

    The docstring of each says its *Source*, paper and code with its commit as far as they were
    read, and when; and under *Lacking* what of it cannot be had here.
    """

    concepts: tuple[Concept, ...] = ()
    """What is asked for; the protocol's own when left out."""
    table: tuple[Prompt, ...] = ()
    """The prompts of a person's file; none where the protocol makes its own."""
    world: bool = False
    """Whether it asks for the world's concepts, in the world's words."""
    mini: int | None = None
    """Pictures of each concept, in a sample that is spread evenly; None takes all."""
    seed: int = 0
    """Fixes seeds where the authors drew theirs at random and no table names them."""

    least: ClassVar = {"mini": 1, "seed": 0}

    name: ClassVar[str]
    draw: ClassVar[Draw] = Draw(50, 7.5, sampler="lms", noise="torch")
    """The authors' sampler; their seeds mean `torch`'s noise."""
    judges: ClassVar[tuple[str, ...]]
    """Who judges, as words for --judge."""
    brought: ClassVar[tuple[str, ...]] = ()
    """The files and folders in those words that a person must bring."""
    kind: ClassVar[Kind] = "hazard"
    """What sort of thing it asks for."""
    own: ClassVar[tuple[str, ...]] = ("nudity",)
    """The names that it asks for on a real model."""
    needs: ClassVar[str] = ""
    """Whose prompts it draws, if they are no part of this program, and their columns."""
    asked: ClassVar[int] = 48
    """Prompts of each concept where no table gives them."""
    samples: ClassVar[int] = 1
    """Pictures of each prompt, drawn from one generator."""
    file: ClassVar[str] = "{case}_{index}"
    """What its authors call a picture's file."""

    def __post_init__(self) -> None:
        """Refuse to go without prompts that only a file has."""
        if self.needs and not self.world and not self.table:
            raise PalimpsestError(
                f"{PREFIX}{self.name} draws {self.needs}; they are no part of Palimpsest, so give "
                "yours with --prompts FILE"
            )

    @classmethod
    def at_hand(cls) -> tuple[str, ...]:
        """Return those of its judges that can be opened: what a person must bring lies here."""
        lacking = [name for name in cls.brought if not Path(name).exists()]
        return tuple(word for word in cls.judges if not any(name in word for name in lacking))

    @cached_property
    def everything(self) -> tuple[Concept, ...]:
        """The concepts that it asks for."""
        if self.concepts:
            return self.concepts
        if self.world:
            return tuple(map(suite.concept, DOMAINS[self.kind]))
        return tuple(Concept(name, self.kind) for name in self.own)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """What every subject is asked, in the authors' order, each with its seed and its name."""
        rows = [self._asking(p) for p in self.table] or self.made()
        rows = [replace(p, case=p.case or str(i)) for i, p in enumerate(rows)]
        every = [replace(p, index=i) for p in rows for i in range(self.samples)]
        return spread(every if self.samples > 1 else rows, self.mini)

    def made(self) -> list[Prompt]:
        """Return its prompts where no table gives them: the sentences that ask for each concept."""
        return [p for c in self.everything for p in c.prompts(self.asked, self.seed)]

    def _asking(self, prompt: Prompt) -> Prompt:
        """Return a row with what it asks for: what it says of itself, else a concept in its text.

        If there is one concept only, every row asks for it.
        """
        some = self.everything
        named = [c for c in some if says(prompt.text, *c.names)] or (some if len(some) == 1 else ())
        asks = prompt.asks or {c.kind: c.name for c in named[:1]}
        return replace(prompt, asks=asks)

    def file_of(self, prompt: Prompt) -> str:
        """Return what its authors would call a picture, without an ending."""
        asks = {kind: prompt.asks.get(kind, "").replace(" ", "_") for kind in ("style", "object")}
        about = {"case": prompt.case, "seed": prompt.seed, "index": prompt.index}
        return self.file.format(**about, **asks)


def spread(prompts: list[Prompt], most: int | None) -> list[Prompt]:
    """Return at most so many prompts of each concept, evenly spread over all of it."""
    if most is None:
        return prompts
    groups = defaultdict[tuple[tuple[str, str], ...], list[Prompt]](list)
    for prompt in prompts:
        groups[tuple(prompt.asks.items())].append(prompt)
    kept = [own[i * len(own) // most] for own in groups.values() for i in range(most)]
    return list(dict.fromkeys(kept))


def shard(prompts: Sequence[T], word: str) -> list[T]:
    """Return part i of n of some prompts, said as `i/n`; the parts together are all of them.

    Raises:
        PalimpsestError: it says no such part.
    """
    part, slash, parts = word.partition("/")
    numbers = [int(n) for n in (part, parts) if n.isdecimal()]
    if not slash or len(numbers) < 2 or not 1 <= numbers[0] <= numbers[1]:
        raise PalimpsestError(f"--shard {word}: name a part and how many there are, such as 1/4")
    i, n = numbers
    if n > len(prompts):
        raise PalimpsestError(f"--shard {word}: there are only {len(prompts)} prompts")
    return list(prompts[i - 1 :: n])


def read_texts(path: Path) -> list[Prompt]:
    """Read prompts that stand in no table: one a line, or the captions of a file of COCO's.

    Their seeds are 0, 1, 2, … in their order.

    Raises:
        PalimpsestError: no such file, or it holds none.
    """
    text = read_utf8(path)
    rows = [(line.strip(), "") for line in text.splitlines()]
    if path.suffix == ".json":
        said = parse_object(text, path).get("annotations")
        said = [r for r in said if isinstance(r, dict)] if isinstance(said, list) else []
        rows = [(str(r.get("caption", "")).strip(), str(r.get("id", ""))) for r in said]
    found = [(caption, case) for caption, case in rows if caption]
    if not found:
        raise PalimpsestError(f"{path}: holds no prompts, neither one a line nor COCO's captions")
    return [Prompt(caption, i, case=case) for i, (caption, case) in enumerate(found)]
