"""The nouns that everything else speaks of, and what each may ask of the others.

Nothing heavy is imported here: `palimpsest --help` passes through this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.concepts import Concept
    from palimpsest.patch import Patch
    from palimpsest.prompts import Prompt

Kind = Literal["object", "style", "identity", "hazard", "watermark"]
"""What sort of thing a concept is; a judge has one head per kind."""

ParameterGroup = Literal["xattn", "noxattn", "selfattn", "xattn-kv", "full", "text"]
"""Named sets of a model's parameters, the same names for every family: all are of the U-Net but
`text`, the whole text encoder."""

NONE = "none of these"
"""What a judge's head says when it sees none of its classes."""


class PalimpsestError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do. Exit code 2."""


class WriteError(PalimpsestError):
    """A file cannot be written. What lies there is whole, and a rerun goes on from it."""


def at_least(method: object, **least: float) -> None:
    """Refuse a hyperparameter below its least value, or one that is no number.

    Raises:
        PalimpsestError: naming the method, the field, its value and the least one.
    """
    for name, low in least.items():
        value = getattr(method, name)
        if not value >= low:
            kind = type(method).__name__
            raise PalimpsestError(f"{kind}: {name} is {value}; it must be at least {low}")


@dataclass(frozen=True)
class Rate:
    """A share of successes with its 95 % Wilson interval."""

    value: float
    """Share of successes, 0 to 1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Number of judged pictures (or picture-and-head pairs)."""

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


@dataclass(frozen=True)
class CurvePoint:
    """One point of a relearning curve."""

    step: int
    """Optimisation steps taken so far."""
    evaluations: int
    """Gradient evaluations so far: steps × accumulation."""
    rate: Rate
    """How often the judge says the concept."""
    says: tuple[bool, ...] = ()
    """Whether it says so of each picture; the same prompts and seeds at every point."""


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


class Task(Protocol):
    """One line of progress."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the line on by `steps`, with a short note such as the loss."""
        ...


class Progress(Protocol):
    """Shows how far long work has come and how long it will still take."""

    def task(self, label: str, total: int, done: int = 0) -> Any:
        """A context manager that yields a `Task`."""
        ...


class Silent:
    """Progress that shows nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Silent]:
        """A task that shows nothing."""
        yield self


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
