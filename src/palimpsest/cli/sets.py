"""Pictures to forget, to retain and to measure on, as flags; and the verbs that share them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.cli import console, machine, paths
from palimpsest.cli.tree import Call
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import Kind
from palimpsest.methods import Measure, Task
from palimpsest.runs.folder import Run
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.data.pairs import Labelled, Pairs

CHOOSE, REPORT = 600_000, 700_000
"""First seeds of the world's pictures to choose by and to report on."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Pictures of what a CLIP or a LLaVA shall forget, and of other things."""

    forget: str = "world"
    """Captioned pictures to forget: a folder, a .csv, webdataset tars, or `world`, the renderer's
    (see `palimpsest data cut`)."""
    retain: str = "world"
    """Captioned pictures to retain, likewise."""
    classes: Path | None = None
    """Pictures by class, one folder each: half of every class to choose by, half to report on. When
    left out, those of the world."""
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
class Asked(Sets):
    """The same, and what a LLaVA is asked about them."""

    questions: tuple[str, ...] | None = None
    """What is asked about pictures of the concept's kind; when left out, what that kind is usually
    asked. A name counts as said if any answer says it, as right if all do."""
    batch_size: int = 32
    """Pictures asked about at once."""


@dataclass(frozen=True, kw_only=True)
class Forget(Sets, machine.Machine):
    """What the verbs have in common that make a model forget by given pictures."""

    model_kind: ClassVar[str]
    """What the model is: one of `MODEL_KINDS`."""

    concept: tuple[str, ...]
    """What shall be forgotten: one name or several at once."""
    model: str = "world"
    """`world` (built in), a Transformers folder or a Hub id of a model of this family."""
    kind: Kind = "object"
    """What sort of thing the classes of `--classes` are: decides what is asked for."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    seed: int = 0
    """Fixes every random draw."""

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Which preset the method's defaults come from."""
        return machine.choose_preset(self.preset, self.model == "world", presets, self.model_kind)

    def refuse(self) -> None:
        """Refuse what can be refused before anything is loaded or drawn.

        Raises:
            PalimpsestError: nothing to forget or too few pictures, pictures of one's own beside the
                world's, which would not be of one world, or a name that the world does not have.
        """
        at_least(self, pictures=1, retain_pictures=2, per_class=1, own=1, seed=0)
        if not any(name.strip() for name in self.concept):
            raise PalimpsestError("nothing is to be forgotten; name it with --concept")
        own = [self.forget != "world", self.retain != "world", self.classes is not None]
        if any(own) and not all(own):
            raise PalimpsestError(
                "pictures of your own need all three of --forget, --retain and --classes; or leave "
                "all three out for the world's"
            )
        for name in self.concept if self.classes is None else ():
            suite.kind_of(name)

    def captioned(self, side: int) -> tuple[Pairs, Pairs]:
        """The pictures to forget and those to retain; what was skipped is said on stderr."""
        from palimpsest.world.datasets import gather

        forget = gather(self.forget, side, self.concept, self.pictures, self.seed)
        n = self.retain_pictures
        retain = gather(self.retain, side, self.concept, n, self.seed, without=True)
        for pairs in (forget, retain):
            if pairs.skipped:
                first = "; ".join(pairs.skipped[:3])
                console.warn(f"{pairs.source}: {len(pairs.skipped)} skipped, such as {first}")
        return forget, retain

    def labelled(self, side: int) -> tuple[Labelled, Labelled]:
        """Pictures by class to choose by, and others to report on."""
        from palimpsest.data.images import resized
        from palimpsest.data.read import read_classes
        from palimpsest.world.datasets import world_classes

        if self.classes is not None:
            return read_classes(self.classes, side, self.kind).halves(self.seed)

        def shown(first: int) -> Labelled:
            own = world_classes(self.per_class, first, more=self.concept, times=self.own)
            return replace(own, images=resized(own.images, side))

        return shown(CHOOSE), shown(REPORT)

    def concepts(self) -> tuple[Concept, ...]:
        """What shall be forgotten, as the world knows it or by its bare name."""
        if self.classes is None:
            return tuple(suite.concept(name) for name in self.concept)
        return tuple(Concept(name, self.kind) for name in self.concept)

    @abstractmethod
    def sets(self, model: Any) -> tuple[Task, list[Measure]]:
        """Return what the model is taught with, and what is measured of it."""

    def forgotten(self, call: Call, root: Path) -> Run:
        """Make the model forget, and measure it; the run is kept in a folder of `root`."""
        self.refuse()
        paths.runs_folder(root)
        machine.silence()
        from palimpsest.core.memory import set_baseline
        from palimpsest.models.loading import load_model
        from palimpsest.runs.asked import On

        set_baseline()
        name = f"{self.model_kind}:{self.model}"
        model = load_model(name, device=self.device, dtype=self.dtype or "float32", **self.files)
        task, measures = self.sets(model)
        runner = self.runner(call, root, model, seed=self.seed)
        return runner.run(task, call.method, On(), measures, preset=call.preset)

    def tell(self, run: Run, left: str) -> int:
        """Show a run's numbers and its search, and write its page; 3 if it fell short.

        Args:
            run: finished.
            left: what the search's first figure counts.
        """
        from palimpsest.report import write_report
        from palimpsest.report.sections.layers import next_best

        record = run.record()
        names = ", ".join(self.concept)
        console.numbers(f"{names}, forgotten by {record.title}", [("edited", run)])
        search = record.search
        if search.get("trials"):
            rows = [
                [t["layer"], *(console.figure(t[k]) for k in ("scale", "forget", "keep"))]
                for t in next_best(search, 5)
            ]
            console.table(
                f"The best layers ({search['rule']}; chosen on the validation pictures)",
                ["layer", "λ", left, "others"],
                rows,
            )
        console.say(f"{write_report([run.folder], run.path('report.html'))}")
        return console.fell_short(record.short)
