"""Pictures for a CLIP or a LLaVA to learn from and to be measured on: as flags, and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.cli import console
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.kinds import Kind
from palimpsest.methods import Measure, Task
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.data.pairs import Labelled
    from palimpsest.data.questions import Quiz

CHOOSE, REPORT = 600_000, 700_000
"""First seeds of the world's pictures to choose by and to report on."""


@dataclass(frozen=True, kw_only=True)
class Pictures(Settings):
    """Pictures of what a CLIP or a LLaVA shall forget, and of other things."""

    least: ClassVar = {"pictures": 1, "retain_pictures": 2, "per_class": 1, "own": 1}

    forget: str = "world"
    """Captioned pictures to forget: a folder, a .csv, webdataset tars, or `world`, the renderer's
    (see `palimpsest data cut`)."""
    retain: str = "world"
    """Captioned pictures to retain, likewise."""
    classes: Path | None = None
    """Pictures by class: half of every class to choose by, half to report on. A folder each, named
    after the class or by ImageNet's synset; or CelebA's, with `list_identity_celeba.txt`. When left
    out, those of the world."""
    pictures: int = 128
    """Pictures to forget, at most."""
    retain_pictures: int = 512
    """Pictures to retain, at most."""
    per_class: int = 8
    """Pictures of each of the world's classes to choose by, and as many to report on."""
    own: int = 8
    """How many times as many of what is forgotten: what is named in 0 of 64 pictures is named in
    at most 5 % (the rule of three)."""


@dataclass(frozen=True, kw_only=True)
class Sets(Pictures):
    """The same, and what a LLaVA is asked about them."""

    questions: tuple[str, ...] | None = None
    """What is asked about pictures of the concept's kind; when left out, what that kind is usually
    asked. A name counts as said if any answer says it, as right if all do."""
    batch_size: int = 32
    """Pictures asked about at once."""


@dataclass(frozen=True)
class Lesson:
    """What a CLIP or a LLaVA shall forget, taught and measured by given pictures."""

    names: tuple[str, ...]
    kind: Kind
    """What sort of thing the classes of one's own pictures are."""
    seed: int
    sets: Sets

    @property
    def world(self) -> bool:
        """Whether the classes are the world's."""
        return self.sets.classes is None

    def refuse(self) -> None:
        """Refuse what can be refused before anything is loaded or drawn.

        Raises:
            PalimpsestError: nothing to forget, pictures of one's own beside the world's, which
                would not be of one world, or a name that the world does not have.
        """
        if not any(name.strip() for name in self.names):
            raise PalimpsestError("nothing is to be forgotten; name it with --concept")
        own = [self.sets.forget != "world", self.sets.retain != "world", not self.world]
        if any(own) and not all(own):
            raise PalimpsestError(
                "pictures of your own need all three of --forget, --retain and --classes; or leave "
                "all three out for the world's"
            )
        for name in self.names if self.world else ():
            suite.kind_of(name)

    def of_clip(self, model: Any) -> tuple[Task, list[Measure]]:
        """Return what a CLIP is taught, and zero-shot accuracies; on the world also membership."""
        from palimpsest.judge.membership import Membership
        from palimpsest.judge.zero_shot import ZeroShot
        from palimpsest.world.datasets import world_pairs

        task, validation, test = self._taught(model.side)
        measures: list[Measure] = [ZeroShot(test)]
        if self.world:
            outside = world_pairs(self.names, len(task.forget or ()), self.seed, use="test")
            measures.append(Membership(outside, self.seed))
        return replace(task, validation=validation), measures

    def of_llava(self, model: Any) -> tuple[Task, list[Measure]]:
        """Return what a LLaVA is taught, and what it is asked before and after."""
        from palimpsest.judge.answers import Answers

        model.batch = self.sets.batch_size
        task, validation, test = self._taught(model.side)
        return replace(task, validation=self._quiz(validation)), [Answers(self._quiz(test))]

    def _taught(self, side: int) -> tuple[Task, Labelled, Labelled]:
        """Return what to forget and to retain, and pictures by class to choose by and to report on.

        What is skipped is said on stderr.
        """
        from palimpsest.world.datasets import gather

        sets, names, seed = self.sets, self.names, self.seed
        forget = gather(sets.forget, side, names, sets.pictures, seed)
        retain = gather(sets.retain, side, names, sets.retain_pictures, seed, without=True)
        for pairs in (forget, retain):
            if pairs.skipped:
                first = "; ".join(pairs.skipped[:3])
                console.warn(f"{pairs.source}: {len(pairs.skipped)} skipped, such as {first}")
        known = suite.concept if self.world else lambda name: Concept(name, self.kind)
        return Task(tuple(map(known, names)), forget, retain), *self._labelled(side)

    def _labelled(self, side: int) -> tuple[Labelled, Labelled]:
        """Return pictures by class to choose by, and others to report on."""
        from palimpsest.data.images import resized
        from palimpsest.data.read import read_classes
        from palimpsest.world.datasets import world_classes

        sets = self.sets
        if sets.classes is not None:
            return read_classes(sets.classes, side, self.kind, self.names).halves(self.seed)

        def shown(first: int) -> Labelled:
            own = world_classes(sets.per_class, first, more=self.names, times=sets.own)
            return replace(own, images=resized(own.images, side))

        return shown(CHOOSE), shown(REPORT)

    def _quiz(self, shown: Labelled) -> Quiz:
        from palimpsest.data.questions import QUESTIONS, Quiz

        kind_of = suite.kind_of if self.world else lambda name: self.kind
        kinds: dict[str, Kind] = {name: kind_of(name) for name in shown.prompts}
        asked = self.sets.questions
        own: dict[Kind, tuple[str, ...]] = {kind_of(n): asked for n in self.names} if asked else {}
        return Quiz(shown.images, shown.labels, shown.prompts, kinds, {**QUESTIONS, **own})


FAMILIES: dict[str, tuple[Callable[[Lesson, Any], tuple[Task, list[Measure]]], str]] = {
    "clip": (Lesson.of_clip, "still named"),
    "llava": (Lesson.of_llava, "still said"),
}
"""Kind of model → what it is taught and measured by, and what its search counts first."""
