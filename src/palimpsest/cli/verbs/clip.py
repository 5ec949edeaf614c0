"""`palimpsest clip METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.cli import session, show
from palimpsest.cli.tree import Call
from palimpsest.erase.clip import CLIP_ERASERS
from palimpsest.registry import Registry
from palimpsest.types import Kind, PalimpsestError
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.clip_bench import Exam
    from palimpsest.models.pairs import Labelled, Lesson
    from palimpsest.runs import Run

CHOOSE, REPORT = 600_000, 700_000
"""First seeds of the world's pictures to choose by and to report on."""


@dataclass(frozen=True, kw_only=True)
class Clip(session.Machine):
    """Make a CLIP forget names, and see zero-shot what it still knows."""

    methods: ClassVar[Registry] = CLIP_ERASERS

    concept: tuple[str, ...]
    """What shall be forgotten: one name or several at once."""
    model: str = "world"
    """`world` (built in), a Transformers folder or a Hub id of a CLIP."""
    forget: str = "world"
    """Captioned pictures to forget: a folder, a .csv, webdataset tars, or `world`, the renderer's
    (see `palimpsest data cut`)."""
    retain: str = "world"
    """Captioned pictures to retain, likewise."""
    classes: Path | None = None
    """Pictures by class, one folder each: half of every class to choose by, half to report on. When
    left out, those of the world."""
    kind: Kind = "object"
    """What sort of thing the classes of `--classes` are: decides their prompts."""
    pictures: int = 128
    """Pictures to forget, at most."""
    retain_pictures: int = 512
    """Pictures to retain, at most."""
    per_class: int = 8
    """Pictures of each of the world's classes to choose by, and as many to report on; of what is
    forgotten, four times as many."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    runs: Path = Path("runs/clip")
    """The folder where runs are kept."""
    seed: int = 0
    """Fixes every random draw."""

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Which preset the method's defaults come from."""
        return session.choose_preset(self.preset, self.model == "world", presets)

    def __call__(self, call: Call) -> int:
        """Forget, measure, and show the numbers; 3 if a search did not reach its end."""
        self._whole()
        for name in self.concept if self.classes is None else ():
            suite.kind_of(name)  # refuse what the world does not have before anything is drawn
        session.runs_folder(self.runs)
        session.silence()
        from palimpsest.clip_bench import ClipBench
        from palimpsest.memory import set_baseline
        from palimpsest.models.loading import load_clip

        set_baseline()
        model = load_clip(self.model, device=self.device, dtype=self.dtype or "float32")
        lesson, exam = self._sets(model.side)
        for pairs in (lesson.forget, lesson.retain):
            if pairs.skipped:
                first = "; ".join(pairs.skipped[:3])
                session.warn(f"{pairs.source}: {len(pairs.skipped)} skipped, such as {first}")
        bench = ClipBench(self.runs, model, show.progress(), call.command, self.seed)
        run = bench.erase(call.name, call.method, lesson, exam, preset=call.preset)
        return self._tell(run)

    def _whole(self) -> None:
        """Refuse pictures of one's own beside the world's: they would not be of one world."""
        own = [self.forget != "world", self.retain != "world", self.classes is not None]
        if any(own) and not all(own):
            raise PalimpsestError(
                "pictures of your own need all three of --forget, --retain and --classes; or leave "
                "all three out for the world's"
            )

    def _sets(self, side: int) -> tuple[Lesson, Exam]:
        from palimpsest.captioned import gather, world_pairs
        from palimpsest.clip_bench import Exam
        from palimpsest.models.pairs import Lesson

        forget, retain = (
            gather(place, side, self.concept, n, self.seed, without=without)
            for place, n, without in (
                (self.forget, self.pictures, False),
                (self.retain, self.retain_pictures, True),
            )
        )
        validation, test = self._classes(side)
        outside, synonyms = None, ()
        if self.classes is None:
            from palimpsest.world.vocabulary import SYNONYMS

            synonyms = tuple(w for name in self.concept for w in SYNONYMS.get(name, ()))
            outside = world_pairs(self.concept, len(forget), self.seed, use="test")
        lesson = Lesson(self.concept, forget, retain, validation, synonyms)
        return lesson, Exam(test, outside)

    def _classes(self, side: int) -> tuple[Labelled, Labelled]:
        from palimpsest.captioned import read_classes, resized, world_classes

        if self.classes is not None:
            return read_classes(self.classes, side, self.kind).halves(self.seed)
        chosen, reported = (
            world_classes(self.per_class, first, more=self.concept) for first in (CHOOSE, REPORT)
        )
        return (
            replace(chosen, images=resized(chosen.images, side)),
            replace(reported, images=resized(reported.images, side)),
        )

    def _tell(self, run: Run) -> int:
        from palimpsest.clip_bench import next_best
        from palimpsest.report.layers import write_layers

        record = run.record()
        names = ", ".join(self.concept)
        show.numbers(f"{names}, forgotten by {record['title']}", [("edited", run)])
        search = record.get("search") or {}
        if search.get("trials"):
            rows = [
                [t["layer"], *(show.figure(t[k]) for k in ("scale", "forget", "keep"))]
                for t in next_best(search)
            ]
            show.table(
                f"The best layers ({search['rule']}; chosen on the validation pictures)",
                ["layer", "λ", "still named", "others"],
                rows,
            )
            show.say(f"{write_layers(search, run.path('layers.html'))}")
        show.say(f"{run.folder}")
        return session.fell_short(record.get("short"))
