"""Pictures with captions, pictures by class, and what makes them fit to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import torch

from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import stream
from palimpsest.data.images import as_floats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pictures, each with its caption."""

    images: Tensor
    """(n, 3, height, width) bytes, or numbers in [0, 1]."""
    texts: tuple[str, ...]
    """The n captions."""
    source: str = ""
    """Where they came from, or what they were drawn of, for messages and records."""
    skipped: tuple[str, ...] = ()
    """What could not be used, each with its reason."""

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Sequence[int] | slice) -> Pairs:
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        chosen = [int(i) for i in chosen]
        return Pairs(self.images[chosen], tuple(self.texts[i] for i in chosen), self.source)

    def shuffled(self, seed: int, n: int | None = None) -> Pairs:
        """Return all of them, or `n`, in an order that the seed fixes."""
        order = torch.randperm(len(self), generator=stream(seed, "order")).tolist()
        return replace(self[order[:n]], skipped=self.skipped)

    @property
    def floats(self) -> Tensor:
        """(n, 3, height, width) in [0, 1]."""
        return as_floats(self.images)

    @cached_property
    def prints(self) -> tuple[str, ...]:
        """A digest of each picture."""
        return tuple(hashlib.sha256(i.numpy().tobytes()).hexdigest()[:16] for i in self.images)

    @cached_property
    def digest(self) -> str:
        """A digest of all pictures and captions in their order."""
        joined = "\n".join(f"{p} {t}" for p, t in zip(self.prints, self.texts, strict=True))
        return hashlib.sha256(joined.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Labelled:
    """Pictures of known classes, for zero-shot evaluation."""

    images: Tensor
    """(n, 3, side, side) bytes."""
    labels: tuple[str, ...]
    """The class of each."""
    prompts: Mapping[str, str]
    """Class → the text that stands for it. A class may have no picture."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Sequence[int]) -> Self:
        chosen = [int(i) for i in index]
        labels = tuple(self.labels[i] for i in chosen)
        return replace(self, images=self.images[chosen], labels=labels)

    @cached_property
    def digest(self) -> str:
        """A digest of all pictures and their classes in their order."""
        sha = hashlib.sha256(repr((self.labels, sorted(self.prompts.items()))).encode())
        sha.update(self.images.numpy().tobytes())
        return sha.hexdigest()[:16]

    def of(self, names: Sequence[str], *, others: bool = False) -> Self:
        """Return the pictures of these classes, or of all others."""
        return self[[i for i, label in enumerate(self.labels) if (label in names) != others]]

    def halves(self, seed: int) -> tuple[Self, Self]:
        """Return two disjoint halves of every class: one to choose by, one to report on.

        Raises:
            PalimpsestError: a class with a single picture, which cannot be halved.
        """
        order = torch.randperm(len(self), generator=stream(seed, "halves")).tolist()
        own: dict[str, list[int]] = {}
        for i in order:
            own.setdefault(self.labels[i], []).append(i)
        lone = [label for label, index in own.items() if len(index) < 2]
        if lone:
            raise PalimpsestError(
                f"the class {lone[0]!r} has one picture, which cannot both choose a layer and be "
                "reported on; give every class two or more"
            )
        first, second = (sorted(chain(*(i[k::2] for i in own.values()))) for k in (0, 1))
        return self[first], self[second]


def check_pairs(
    forget: Pairs, retain: Pairs, names: Sequence[str], synonyms: Sequence[str] = ()
) -> None:
    """Refuse a forget and a retain set that cannot serve.

    Raises:
        PalimpsestError: an empty set, a name that no caption holds, or sets that overlap.
    """
    for which, pairs in (("forget", forget), ("retain", retain)):
        if not len(pairs):
            raise PalimpsestError(
                f"the {which} set is empty ({pairs.source or 'no source'}); name another"
            )
    for name in names:
        if not any(says(text, name, *synonyms) for text in forget.texts):
            raise PalimpsestError(
                f"no caption of the forget set ({forget.source}) holds {name!r}; cut the set by "
                "that name, or use the words of the captions"
            )
    mixed = [text for text in retain.texts if says(text, *names, *synonyms)]
    if mixed:
        raise PalimpsestError(
            f"{len(mixed)} of {len(retain)} captions of the retain set ({retain.source}) speak of "
            f"what is to be forgotten, such as {mixed[0]!r}; take them out (palimpsest data cut "
            "--rest)"
        )
    shared = set(forget.prints) & set(retain.prints)
    if shared:
        raise PalimpsestError(
            f"the forget set ({forget.source}) and the retain set ({retain.source}) share "
            f"{len(shared)} pictures; take them out of one of the two"
        )


def check_classes(validation: Labelled, names: Sequence[str]) -> None:
    """Refuse pictures by class that show nothing of what is forgotten, or of what is kept.

    Raises:
        PalimpsestError: a name, or everything else, has no picture.
    """
    for name in names:
        if name not in validation.labels:
            raise PalimpsestError(
                f"there is no picture of the class {name!r} to see by whether it is forgotten"
            )
    if not len(validation.of(names, others=True)):
        raise PalimpsestError(
            "there is no picture of another class to see by what is kept; give some"
        )


def __getattr__(name: str) -> Any:
    if name == "Lesson":
        raise AttributeError("palimpsest.data.pairs.Lesson is now palimpsest.methods.Task")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
