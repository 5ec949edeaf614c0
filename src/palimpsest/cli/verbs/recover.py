"""`palimpsest recover METHOD RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from palimpsest.cli import again, console, machine, open_run, paths
from palimpsest.cli.judged import Judged
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.registry import Registry
from palimpsest.recover import RECOVERIES
from palimpsest.runs.folder import Run

if TYPE_CHECKING:
    from palimpsest.runs.scoring import Panel

Subject = Literal["erased", "gold", "unedited"]
EVERY: tuple[Subject, ...] = ("erased", "gold", "unedited")


@dataclass(frozen=True, kw_only=True)
class Recover(machine.Drawing, machine.Training):
    """Try to bring back what a run erased, with the run's own concept, model, prompts and seed."""

    methods: ClassVar[Registry] = RECOVERIES
    apart: ClassVar[dict[str, str]] = {"replay": "palimpsest.cli.verbs.replay"}

    erasure: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished erasing run, or what others published: a patch file, or anything
    that `palimpsest patch import` reads, of which a run is made first; or `owner/name` on the
    Hub."""
    concept: str | None = None
    """Which concept of a run that erased several; of what others published, what it was to forget,
    such as `style:van gogh`."""
    model: str | None = None
    """Of what others published: the base model that it edits, `world` when left out."""
    judge: tuple[str, ...] = ("auto",)
    """Who looks at the pictures, one or several, as of `palimpsest erase`; `auto` takes those of
    RUN."""
    class_map: Path | None = None
    """For `hf:` and `vit:`: a JSON file of a classifier's label → the concept's name."""
    subject: tuple[Subject, ...] | None = None
    """Whom to recover it from, one or several: the `erased` model, `gold` (the one that never knew
    the concept: what it learns is taught, not recovered) or the `unedited` one (where nothing was
    erased: the ceiling). When left out, all three, gold where one is shipped."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    seed: int | None = None
    """Fixes every random draw of the recovery; that of RUN when left out."""
    look_with: str | None = None
    """A CLIP that looks at the pictures: a Transformers folder or a Hub id, such as
    openai/clip-vit-base-patch32. When left out, that of RUN; the world has its own."""
    runs: Path | None = None
    """The folder where runs are kept; that of RUN when left out."""
    dry_run: bool = False
    """Say what would run, for how long and in how much memory, and write nothing."""

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Return which preset the defaults come from: of the world's model, or of what is like it.

        That is what the world's judge looks at; presets are tuned to the model.
        """
        if self._published:
            world = self._judged.for_world(self.model or "world")
            return machine.choose_preset(self.preset, world, presets)
        record = open_run.erasure(self.erasure).record()
        ref = (record.judge.ref if record.judge else None) or ""
        world = record.model.name == "world" or ref == "world" or ref.endswith(":world")
        return machine.choose_preset(self.preset, world, presets)

    def __call__(self, call: Call) -> None:
        """Recover, judge, and show the curve and the numbers."""
        self.refuse_optimizer(call, self.preset)
        if self.seed is not None:
            at_least(self, seed=0)
        erased = self._import(call) if self._published else open_run.erasure(self.erasure)
        name = None if self._published else self.concept
        record, concept = erased.record(), open_run.concept_of(erased, name)
        root = self.runs or erased.folder.resolve().parent
        paths.runs_folder(root)
        before = again.Again(root) if self._published else again.look(self, call, root, record)
        if (runs := before.runs()) is None and (runs := self._runs(call, erased, root)) is None:
            return
        told = [(f"on {who}", run) for who, run in runs.items()]
        console.curves(told)
        console.notes(told)
        first = told[0][1].record()
        for who, run in told:
            console.found(who, run)
        beside = [] if first.answers else [("erased", erased)]  # judged by other prompts
        console.numbers(f"{concept.name}: {first.title}", [*beside, *told])
        for _, run in told:
            console.made(run.folder)
        before.keep(runs)

    def _runs(self, call: Call, erased: Run, root: Path) -> dict[Subject, Run] | None:
        """Return the recovery's run on each subject; none if nothing is to be run."""
        record = erased.record()
        concept = open_run.concept_of(erased, None if self._published else self.concept)
        machine.check_look_with(self.look_with, open_run.of_world(record))
        panel = self._panel(erased)
        if panel.judge is None:
            console.warn("no judge looks at the pictures: the recovery measures nothing")
        model = self.load_of(erased)
        from palimpsest.runs.asked import On
        from palimpsest.runs.images import asked
        from palimpsest.world import assets

        prompts, usual = asked(erased), getattr(call.method, "subjects", EVERY)
        if self.dry_run:
            from palimpsest.cli.plan import tell
            from palimpsest.erase.gold import Gold

            known = model.name == "world" and concept.name in assets.golds()
            known &= record.method != Gold().name and len(record.concepts) == 1
            subjects = self._subjects(concept.name, known, usual)
            told = call, model, concept.name, len(prompts), root, subjects
            return tell(*told, optimizer=self.optimizer)
        self.refuse_device(model)
        seed = (record.seed or 0) if self.seed is None else self.seed
        runner = self.runner(call, root, model, panel, seed)
        whole = len(record.concepts) == 1  # a gold model never knew one concept, not several
        gold = open_run.gold_of(runner, concept, prompts, force=True) if whole else None
        if gold is not None and gold.name == erased.name:
            gold = None  # gold itself is attacked, and has nothing to stand against
        runs: dict[Subject, Run] = {}
        how: Any = {"preset": self.preset_of(call), "optimizer": self.optimizer}
        for who in self._subjects(concept.name, gold is not None, usual):
            console.step(f"{call.name}: recovering {concept.name} from the {who} model")
            subject = {"erased": erased, "gold": gold, "unedited": None}[who]
            on = On(prompts, subject, gold)
            runs[who] = runner.run(concept, call.method, on, **how)
        return runs

    def _panel(self, erased: Run) -> Panel:
        if self.judge == ("auto",) or self._published:
            return open_run.panel_of(erased, self.device, self.look_with)
        words = machine.judges_of(self.judge, open_run.of_world(erased.record()))
        own = open_run.clip_of(erased, self.device, self.look_with)
        return machine.panel(words, open_run.opening_of(erased, self.device, self.class_map), own)

    @property
    def _published(self) -> bool:
        """Whether it is no run, but what others published."""
        place, known = self.erasure, ("model_index.json", "*.safetensors", "*.bin")
        weights = place.is_dir() and any(found for name in known for found in place.glob(name))
        hub = len(place.parts) == 2 and not place.parent.is_dir()  # perhaps, or it is mistyped
        elsewhere = not place.exists() and (hub or self.concept is not None)
        return elsewhere or place.is_file() or (weights and not (place / "run.json").is_file())

    @property
    def _judged(self) -> Judged:
        """How a run of what others published is made."""
        own = {f.name: getattr(self, f.name) for f in fields(machine.Drawing)}
        own |= {"concept": (self.concept,) if self.concept else ()}
        own |= {"judge": self.judge, "class_map": self.class_map}
        return Judged(**own, runs=self.runs or Path("runs"))

    def _import(self, call: Call) -> Run:
        """Return a run of what others published."""
        if self.concept is None:
            raise PalimpsestError(
                f"{self.erasure}: no run lies here; of what others published, say with --concept "
                "what it was to forget, and with --model over which model it lies"
            )
        if self.dry_run:
            raise PalimpsestError(
                f"{self.erasure}: no run, and --dry-run makes none; make a run of it with "
                "palimpsest audit, or ask palimpsest audit --dry-run"
            )
        return self._judged.imported(call, self.model or "world", self.erasure)

    def _subjects(self, name: str, gold: bool, usual: Sequence[Any]) -> tuple[Subject, ...]:
        if self.subject is None:
            return tuple(who for who in usual if gold or who != "gold")
        if "gold" in self.subject and not gold:
            raise PalimpsestError(
                f"no gold model without {name!r} is shipped; leave `gold` out of --subject"
            )
        return tuple(dict.fromkeys(self.subject))
