"""The nouns that everything else speaks of, and what each may ask of the others.

Nothing heavy is imported here: `palimpsest --help` passes through this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from palimpsest.core.brief import Outcome
from palimpsest.core.budgets import by_steps
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import Demanding
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.kinds import Optimizer
from palimpsest.core.moved import SETTINGS
from palimpsest.core.processes import ALONE, Alone
from palimpsest.core.progress import Progress, Silent
from palimpsest.core.registry import nearest
from palimpsest.core.streams import stream
from palimpsest.core.typed import jsonable
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import CurvePoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.core.prompts import Prompt
    from palimpsest.data.pairs import Labelled, Pairs
    from palimpsest.patch import Patch
    from palimpsest.patch.asking import Asking


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

    labels: Mapping[str, Sequence[str | None]]
    """Kind → one label per picture, a class of that kind or `none of these`; None for a picture
    that could not be judged."""
    confidence: Mapping[str, Sequence[float]]
    """Kind → the probability of that label."""

    def says(self, kind: str, name: str) -> list[bool]:
        """For each picture, whether the head of `kind` names `name`."""
        return [label == name for label in self.labels[kind]]


class Judge(Protocol):
    """Looks at pictures and says what they show; it never learns which method made them.

    This is all that is asked of a judge. One that also has `features(images)`, (n, 3, height,
    width) in [0, 1] → (n, d), is asked for Fréchet distances, too.
    """

    @property
    def spec(self) -> Spec:
        """What stands behind its readings."""
        ...

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """Kind → the names that it can give a picture, `none of these` left out."""
        ...

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1], of any size."""
        ...


class TextJudge(Protocol):
    """Says how well pictures fit texts, as CLIP does; it never learns which method made them."""

    spec: Spec

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) cosine of each picture, (n, 3, height, width) in [0, 1], with its own text."""
        ...


# --- what is measured ---


@dataclass(frozen=True)
class Number:
    """One number of a run, with all that it means."""

    name: str
    """What is counted; behind a comma, over what."""
    value: float
    """NaN where nothing could be judged."""
    low: float = math.nan
    """Lower end of its 95 % interval; NaN where it has none."""
    high: float = math.nan
    """Upper end likewise."""
    n: int = 0
    """How many pictures it is over."""
    unit: str = ""
    """`%` of a share from 0 to 1."""
    spec: str = ""
    """What measured it, and how the pictures were drawn."""
    meaning: str = ""
    """What it counts, and which way is good."""
    missing: int = 0
    """How many pictures could not be judged; they are no part of `n`."""
    concept: str = ""
    """The one concept that it is over; empty of one over all."""

    @classmethod
    def of(cls, name: str, rate: Rate, unit: str = "%", concept: str = "") -> Number:
        """Return a rate or a mean as a number."""
        return cls(name, **asdict(rate), unit=unit, concept=concept)


@dataclass(frozen=True)
class Seen:
    """What a measure looks at: one model, and the pictures that it drew of the run's prompts."""

    task: Task
    """What was to be forgotten or brought back."""
    model: Any = None
    """The model with its patches applied; None where pictures on the disk are judged again."""
    prompts: tuple[Prompt, ...] = ()
    """What was drawn; empty of a model that draws nothing."""
    pictures: Callable[[Sequence[Prompt]], Tensor] = field(default=lambda prompts: NotImplemented)
    """The pictures of some of the prompts, (n, 3, height, width) in [0, 1]."""
    labels: Callable[..., Mapping[str, Sequence[str | None]]] = field(
        default=lambda prompts, judge=None: {}
    )
    """What a judge, the run's own unless another is named, says of some of the pictures, by
    kind."""
    answered: bool = False
    """Whether the pictures answer what a recovery found in the prompts' place."""
    before: Callable[[Sequence[Prompt]], Tensor] | None = None
    """The unedited model's pictures of some of the prompts; None where it drew none."""

    @property
    def own(self) -> list[Prompt]:
        """The prompts that ask for one of the task's concepts."""
        return [p for p in self.prompts if self.task.asked_by(p)]

    @property
    def by_concept(self) -> list[tuple[Concept, list[Prompt]]]:
        """Each of the task's concepts with the prompts that ask for it."""
        concepts = self.task.concepts
        return [(c, [p for p in self.prompts if p.wants(c.kind, c.name)]) for c in concepts]

    @property
    def rest(self) -> list[Prompt]:
        """The prompts that ask for none of them."""
        return [p for p in self.prompts if not self.task.asked_by(p)]


class Measure(Protocol):
    """Counts something of a model: on its pictures, or by asking the model itself.

    It may also have `about`, a mapping of what its numbers depend on, which becomes part of the
    run's configuration; `files(before, after)`, which yields names with the rows of a `.jsonl`
    or the pictures of a `.png` to be kept in the run's folder; `refuse(seen)`, which refuses a run
    that it cannot count, before anybody has looked at it; and `in_python`, a text that says why no
    command can count it.
    """

    @property
    def spec(self) -> str:
        """What stands behind its numbers; two specs are never compared."""
        ...

    @property
    def meanings(self) -> Mapping[str, str]:
        """Name of each of its numbers, up to a comma → what it counts and which way is good.

        The latter in a sentence that begins with High or Low, as `core.legend` reads it.
        """
        ...

    def collect(self, seen: Seen) -> Any:
        """Look at one model or its pictures."""

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        """Count what was collected.

        Args:
            seen: whom it was collected of.
            found: what `collect` came back with.
            beside: what it came back with for the `unedited` or the `gold` model on the same
                prompts; None where there is none.
        """
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
    optimizer: Optimizer = "own"
    """What training takes its steps by."""
    cache: Path | None = None
    """Where to keep what other runs could use again; None keeps that with the checkpoints."""
    progress: Progress = field(default_factory=Silent)
    """Where to show how far the work has come."""
    log: Callable[[dict[str, Any]], None] = lambda row: None
    """Takes one JSON-able row per event, such as a step's loss."""
    tell: Callable[[str], None] = lambda sentence: None
    """Takes a sentence for the person who waits."""
    group: Alone = ALONE
    """The processes that go through the method together; every one of them calls it."""

    def stream(self, name: str, *index: int) -> torch.Generator:
        """Return the random stream of that name: it depends on seed, name and index alone."""
        return stream(self.seed, name, *index)

    def needs_judge(self) -> Judge:
        """The judge, or a clear refusal."""
        if self.judge is None:
            raise PalimpsestError(
                "this method looks at pictures and no judge is at hand: name one with --judge (in "
                "Python, give its Context one), or let it measure nothing"
            )
        return self.judge

    def needs_clip(self) -> TextJudge:
        """The CLIP that looks, or a clear refusal."""
        if self.clip is None:
            raise PalimpsestError(
                "this method asks how well pictures fit their prompts and no CLIP is at hand: name "
                "one with --judge clip:WHICH (in Python, give its Context one), or let it be "
                "judged without"
            )
        return self.clip


# --- what a method is asked, and what it answers ---


@dataclass(frozen=True)
class Task(Settings):
    """What shall be forgotten or brought back, and pictures for the methods that need them."""

    concepts: tuple[Concept, ...]
    """One concept, or several of any kind."""
    forget: Pairs | None = None
    """Captioned pictures of the concepts, for the methods that learn from given ones."""
    retain: Pairs | None = None
    """Captioned pictures of other things."""
    validation: Labelled | None = None
    """Pictures by class to choose by; what is reported is measured on others."""

    @classmethod
    def of(cls, what: Task | Concept | Sequence[Concept]) -> Task:
        """Return a task about a concept or several; a task stays as it is.

        Raises:
            PalimpsestError: no concept, or something that is none.
        """
        if isinstance(what, Task):
            return what
        given: Any = what  # neither a set, which has no order, nor the letters of a name
        several = isinstance(given, Iterable) and not isinstance(given, set | str)
        concepts: Any = tuple(given) if several else (given,)
        if not concepts or not all(isinstance(concept, Concept) for concept in concepts):
            raise PalimpsestError(
                f"{what!r} is no task: give a Concept, such as Concept('cat', 'object'), several "
                "of them, or a Task"
            )
        return cls(concepts)

    @property
    def concept(self) -> Concept:
        """The one concept.

        Raises:
            PalimpsestError: there are several.
        """
        if len(self.concepts) != 1:
            names = ", ".join(concept.name for concept in self.concepts)
            raise PalimpsestError(f"one concept is wanted and there are {names}; name one")
        return self.concepts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def synonyms(self) -> tuple[str, ...]:
        """Other words for the concepts, which no caption to retain may say either."""
        return tuple(word for concept in self.concepts for word in concept.synonyms)

    def asked_by(self, prompt: Prompt) -> bool:
        """Return whether a prompt asks for one of the concepts."""
        return any(prompt.wants(concept.kind, concept.name) for concept in self.concepts)

    def sets(self) -> tuple[Pairs, Pairs, Labelled]:
        """Return the pictures to forget, those to retain, and those to choose by.

        Raises:
            PalimpsestError: one of the three is not given, or cannot serve.
        """
        if self.forget is None or self.retain is None or self.validation is None:
            raise PalimpsestError(
                "the method learns from given pictures, and the task lacks some: give it all three "
                "of forget, retain and validation"
            )
        from palimpsest.data.pairs import check_classes, check_pairs  # they import torch

        check_pairs(self.forget, self.retain, self.names, self.synonyms)
        check_classes(self.validation, self.names)
        return self.forget, self.retain, self.validation


@dataclass(frozen=True, repr=False)
class Result(Outcome):
    """What an eraser or a recovery came back with."""

    patch: Patch | None = None
    """The edit, if it changes weights or sampling; a recovery's is applied over the erasure."""
    curve: tuple[CurvePoint, ...] = ()
    """The concept's accuracy over the steps."""
    prompts: tuple[str, ...] = ()
    """The prompts it found, if it changes what is asked."""
    images: Tensor | None = None
    """The pictures it trained on, (n, 3, height, width) in [0, 1], if it made any."""
    asked: tuple[Prompt, ...] = ()
    """If it changes what is asked, not what answers: the plain prompts that it replaced by its own.
    A run of it is judged by these alone."""
    answers: Tensor | None = None
    """(len(asked), 3, height, width) in [0, 1]: what the model under attack drew for each."""
    asking: Asking | None = None
    """If it changes what is asked: that, so that another model can be asked it."""
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
    search: Mapping[str, Any] = field(default_factory=dict)
    """What a method that searches has tried and chosen, for the record."""
    short: str | None = None
    """In one sentence, what a search did not reach; its best is kept."""
    arm: str = ""
    """Which of a comparison's arms this is, for the record."""


class Method(Demanding):
    """A frozen dataclass of hyperparameters, called on a model. Base of `Eraser` and `Recovery`."""

    bibtex: ClassVar[str]
    """The paper, as BibTeX."""
    presets: ClassVar[dict[str, dict[str, Any]]]
    """Named settings. `published`, the defaults, which are the paper's, need not be named."""
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion"})
    """What it needs of a model, of the names in `offers` of the models."""
    needs_one: ClassVar[frozenset[str]] = frozenset()
    """Where several kinds of model serve: it needs one of these, too."""
    seedless: ClassVar[bool] = False
    """Whether it draws nothing at random on a diffusion model: every seed gives the same."""
    lacks: ClassVar[dict[str, str]] = {}
    """Settings of its kin that it cannot have → why, in a sentence's second half."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give every method with presets the published one."""
        super().__init_subclass__(**kwargs)
        if "presets" in vars(cls):
            cls.presets = {"published": {}, **cls.presets}

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse a setting that there is not by a sentence that names the one meant."""
        known = [f.name for f in fields(cls)] if is_dataclass(cls) else []
        for name in settings if known else ():
            if name not in known:
                now, why = cls.renamed(name), cls.lacks.get(name)
                meant = f"; it is now {' or '.join(now)}" if now else nearest(name, known)
                meant = f": {why}" if why else meant
                raise PalimpsestError(f"{cls.__name__} has no setting {name!r}{meant}")
        return super().__new__(cls)

    @classmethod
    def renamed(cls, name: str) -> list[str]:
        """Return what a setting of former versions is called by now, such as `latents.steps`."""
        nested = {f.name: f.default for f in fields(cls) if is_dataclass(f.default)}  # type: ignore[arg-type]
        known = {f.name for f in fields(cls)} - {*nested}  # type: ignore[arg-type]
        known |= {f"{n}.{f.name}" for n, value in nested.items() for f in fields(value)}  # type: ignore[arg-type]
        if name in nested:
            return [f"{name}.{fields(nested[name])[0].name}"]  # type: ignore[arg-type]
        return sorted(k for k in known for now in SETTINGS.get(name, ()) if fnmatch(k, now))

    @property
    def name(self) -> str:
        """The name of its file, by which the registry knows it."""
        return type(self).__module__.rpartition(".")[2]

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Return the method with other settings; `latents.steps` names one inside another."""
        own = {name: value for name, value in settings.items() if "." not in name}
        inside: dict[str, dict[str, Any]] = {}
        for name in settings.keys() - own.keys():
            outer, _, inner = name.partition(".")
            inside.setdefault(outer, {})[inner] = settings[name]
        for outer, changes in inside.items():  # at once: one alone may not fit the others
            own[outer] = replace(own.get(outer, getattr(self, outer)), **changes)
        return replace(self, **own)  # type: ignore[type-var]

    @property
    def about(self) -> dict[str, Any]:
        """What a patch says of the method that made it, JSON-able."""
        arguments = asdict(self, dict_factory=jsonable)  # type: ignore[call-overload]
        return {"method": self.name, "arguments": arguments}

    def check(self, model: Any, task: Task) -> None:
        """Refuse what the method cannot do, before anything is spent."""

    def moves(self, model: Any) -> dict[str, int]:
        """Return the entries that it moves, by parameter: those of the group `train`, if any."""
        group = getattr(self, "train", None)
        return model.sizes(group) if group else {}

    def changes(self, model: Any) -> dict[str, int]:
        """Return the entries of the weights that its patch changes, by parameter."""
        return self.moves(model)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        return 0, 0

    def refuse(self, model: Any, task: Task) -> None:
        """Refuse a model that lacks what the method needs, then whatever `check` refuses.

        Raises:
            PalimpsestError: naming what is lacking.
        """
        offers = getattr(model, "offers", frozenset())
        lacking = " and ".join(sorted(self.needs - offers))
        if self.needs_one and not self.needs_one & offers:
            lacking = " or ".join(sorted(self.needs_one))
        if lacking:
            raise PalimpsestError(
                f"{type(self).__name__} needs {lacking}, which {model.name!r} does not have; "
                "palimpsest list says which methods edit which models"
            )
        self.check(model, task)


class Eraser(Method):
    """A method that makes a patch; the model is left as it was."""

    def __call__(
        self,
        model: Any,
        task: Task | Concept | Sequence[Concept],
        *,
        context: Context | None = None,
    ) -> Result:
        """Erase the task's concepts from `model`.

        Raises:
            PalimpsestError: the model lacks what the method needs, or the method refuses the task.
        """
        asked = Task.of(task)
        self.refuse(model, asked)
        result = self.make(model, asked, context or Context())
        patch = result.patch
        if patch is None:
            raise PalimpsestError(f"{type(self).__name__} made no patch")
        return replace(result, patch=replace(patch, about=self.about | {**patch.about}))

    def make(self, model: Any, task: Task, context: Context) -> Result:
        """Make the patch by `erase`; a base of several erasers may do more before and after it."""
        return self.erase(model, task, context)

    def erase(self, model: Any, task: Task, context: Context) -> Result:
        """Make the patch; the task was checked."""
        raise NotImplementedError


class Recovery(Method):
    """A method that tries to bring a concept back. It never knows how the erasure was made."""

    subjects: ClassVar[tuple[str, ...]] = ("erased", "gold", "unedited")
    """The models that it is tried on, unless a person says otherwise; gold where there is one."""

    def within(self, budget: int) -> Self:
        """Return it with settings by which it spends a budget, or as near as they come.

        One with the setting `steps` gets as many as the budget pays for, and its curve is measured
        at each quarter of them; any other stays as it is, unless it says itself how to spend.

        Args:
            budget: gradient evaluations; for each prompt of one that attacks each by itself.
        """
        return self.changed(by_steps(self, budget))

    def __call__(
        self,
        model: Any,
        task: Task | Concept | Sequence[Concept],
        erased: Patch | None,
        *,
        context: Context | None = None,
    ) -> Result:
        """Try to bring the task's concept back to `model` as edited by `erased`.

        Args:
            model: the base model.
            task: one concept.
            erased: the erasing patch; None is the unedited model.
            context: seed, judge, progress and checkpoint folder.

        Raises:
            PalimpsestError: the model lacks what the method needs, the patch is of another base
                model, or the method refuses the task.
        """
        asked = Task.of(task)
        if erased is not None:
            model.accepts(erased)
        self.refuse(model, asked)
        result = self.recover(model, asked.concept, erased, context or Context())
        if result.patch is None:
            return result
        about = self.about | {**result.patch.about}
        return replace(result, patch=replace(result.patch, about=about))

    def recover(
        self, model: Any, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Try to bring `concept` back; model and patch were checked."""
        raise NotImplementedError


def __getattr__(name: str) -> Any:
    if name == "Attempt":
        raise AttributeError("palimpsest.methods.Attempt is now palimpsest.methods.Result")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
