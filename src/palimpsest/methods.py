"""The nouns that everything else speaks of, and what each may ask of the others.

Nothing heavy is imported here: `palimpsest --help` passes through this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.progress import Progress, Silent
from palimpsest.metrics.relearning import CurvePoint

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.core.concepts import Concept
    from palimpsest.core.prompts import Prompt
    from palimpsest.patch import Patch


@dataclass(frozen=True)
class Spec:
    """What stands behind a number: without it the number means nothing."""

    name: str
    version: str
    resolution: int
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Reading:
    """What a classifier sees in a batch of pictures, head by head."""

    labels: dict[str, list[str]]
    """Kind → one label per picture, a class of that kind or `none of these`."""
    confidence: dict[str, list[float]]
    """Kind → the probability of that label."""

    def says(self, kind: str, name: str) -> list[bool]:
        """For each picture, whether the head of `kind` names `name`."""
        return [label == name for label in self.labels[kind]]


class Judge(Protocol):
    """Looks at pictures and says what they show; it never learns which method made them."""

    spec: Spec

    def read(self, images: Tensor) -> Reading:
        """Read a batch of pictures, (n, 3, height, width) in [0, 1]."""
        ...


class TextJudge(Protocol):
    """Says how well pictures fit texts, as CLIP does; it never learns which method made them."""

    spec: Spec

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) cosine of each picture, (n, 3, height, width) in [0, 1], with its own text."""
        ...


@dataclass(frozen=True)
class Context:
    """What a run lends a method. No part of the method's identity or of a run's hash but the seed.

    A method finds its judge, its progress bar and its checkpoint folder here and nowhere else.
    """

    seed: int = 0
    """Fixes every random draw of a method on one machine."""
    judge: Judge | None = None
    """For methods that must look at pictures: a search, a stopping rule, a curve."""
    clip: TextJudge | None = None
    """For methods that must know how well pictures fit their prompts."""
    folder: Path | None = None
    """Where checkpoints may be kept; None keeps none."""
    cache: Path | None = None
    """Where to keep what other runs could use again; None keeps that with the checkpoints."""
    progress: Progress = field(default_factory=Silent)
    """Where to show how far the work has come."""
    log: Callable[[dict[str, Any]], None] = lambda row: None
    """Takes one JSON-able row per event, such as a step's loss."""

    def needs_judge(self) -> Judge:
        """The judge, or a clear refusal."""
        if self.judge is None:
            raise PalimpsestError(
                "this method looks at pictures and no judge is at hand: give its Context one, or "
                "let it measure nothing"
            )
        return self.judge

    def needs_clip(self) -> TextJudge:
        """The CLIP that looks, or a clear refusal."""
        if self.clip is None:
            raise PalimpsestError(
                "this method asks how well pictures fit their prompts and no CLIP is at hand: give "
                "its Context one, or let it be judged without"
            )
        return self.clip


@runtime_checkable
class Eraser(Protocol):
    """A frozen dataclass of hyperparameters that makes a patch; the model is left as it was."""

    bibtex: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]

    def __call__(self, model: Any, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase `concepts` from `model`."""
        ...


@dataclass(frozen=True)
class Attempt:
    """What a recovery came back with."""

    patch: Patch | None = None
    """What to lay over the erased model, if the recovery changes weights."""
    curve: tuple[CurvePoint, ...] = ()
    """The concept's accuracy over the recovery's steps."""
    prompts: tuple[str, ...] = ()
    """The prompts it found, if it changes what is asked."""
    images: Tensor | None = None
    """The pictures it trained on, (n, 3, height, width) in [0, 1], if it made any."""
    asked: tuple[Prompt, ...] = ()
    """If it changes what is asked, not what answers: the plain prompts that it put its own in place
    of. A run of it is judged by these alone."""
    answers: Tensor | None = None
    """(len(asked), 3, height, width) in [0, 1]: what the model under attack drew for each."""
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """The embeddings it found, by name."""
    queries: int = 0
    """Pictures of the model under attack that it had judged to find its way; the curve's own do
    not count."""
    evaluations: int | None = None
    """Gradient evaluations that it spent, where it may end before its budget; None is all that the
    method counts beforehand."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else it found, by title, for the record: a mapping of figures, or rows of a table."""


@runtime_checkable
class Recovery(Protocol):
    """A frozen dataclass of hyperparameters that tries to bring a concept back.

    It never knows how the erasure was made. `erased=None` is the unedited model.
    """

    bibtex: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]

    def __call__(
        self, model: Any, concept: Concept, erased: Patch | None, *, context: Context
    ) -> Attempt:
        """Try to bring `concept` back to `model` as edited by `erased`."""
        ...
