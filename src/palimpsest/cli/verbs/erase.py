"""`palimpsest erase METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar

from palimpsest.cli import again, console, machine, paths
from palimpsest.cli.judged import Judged
from palimpsest.cli.named import kind_and_name
from palimpsest.cli.sets import FAMILIES, Lesson, Pictures, Sets
from palimpsest.cli.tables import FLAGS
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import Kind, model_kind
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.runs.folder import Run

OF_PROMPTS = (
    *("concepts", "anchor", "keep", "synonyms"),
    *("judge", "prompts", *FLAGS, "gold", "force", "dry_run", "memory", "optimizer"),
)
UNREAD = {"clip": (*OF_PROMPTS, "sets.questions", "sets.batch_size"), "llava": OF_PROMPTS}
"""Kind of model → flags that mean nothing to it."""


@dataclass(frozen=True, kw_only=True)
class Erase(Judged, machine.Training):
    """Make a model forget a concept, and judge what is left."""

    methods: ClassVar[Registry] = ERASERS

    model: str = "world"
    """`world` (built in), a Diffusers folder, a .safetensors checkpoint, or a Hub id; `clip:` or
    `llava:` and `world`, a Transformers folder or a Hub id."""
    sets: Sets = Sets()
    """For a CLIP or a LLaVA: the pictures to learn from and to measure on."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    gold: bool = True
    """Set beside it the model that never knew the concept, where one is shipped."""
    force: bool = False
    """Erase even what the model hardly knows."""
    dry_run: bool = False
    """Say what would run, for how long and in how much memory, and write nothing."""

    @staticmethod
    def more(name: str) -> str:
        """Return what a method's example needs besides: a model that it can edit."""
        other = name in ERASERS.own and name not in OF_DIFFUSION
        return "--model clip:world" if other else ""

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Return which preset the method's defaults come from."""
        kind, own = model_kind(self.model)
        world = own == "world" if kind else self.for_world(self.model)
        return machine.choose_preset(self.preset, world, presets, kind)

    def __call__(self, call: Call) -> int | None:
        """Erase, judge, and show the numbers; 3 if a search did not reach its end."""
        family, _ = model_kind(self.model)
        return self._by_sets(family, call) if family else self._by_prompts(call)

    def _by_sets(self, family: str, call: Call) -> int:
        """Erase from a CLIP or a LLaVA, taught and measured by given pictures."""
        alien = [n for n in UNREAD[family] if attrgetter(n)(self) != attrgetter(n)(Erase())]
        if alien:
            named = (FLAGS.get(name) or name for name in sorted(alien))
            flags = ", ".join("--" + name.replace("_", "-") for name in named)
            raise PalimpsestError(f"{flags}: of no use for --model {self.model}; leave it out")
        at_least(self, seed=0)
        named = [kind_and_name(word) for word in self.concept]
        kinds: list[Kind | None] = [self.kind, *(kind for kind, _ in named), "object"]
        names = tuple(name for _, name in named)
        lesson = Lesson(names, next(filter(None, kinds)), self.seed, self.sets)
        lesson.refuse()
        paths.runs_folder(self.runs)
        model = self.load_any(self.model)
        from palimpsest.runs.asked import On

        taught, left = FAMILIES[family]
        task, measures = taught(lesson, model)
        runner = self.runner(call, self.runs, model, seed=self.seed)
        run = runner.run(task, call.method, On(), measures, preset=call.preset)
        return _tell(run, ", ".join(names), left)

    def _by_prompts(self, call: Call) -> int | None:
        """Erase from a text-to-image model, judged by pictures of prompts."""
        if self.sets != Sets():
            raise PalimpsestError(
                "--sets is for a CLIP or a LLaVA; a method on a text-to-image model has flags of "
                f"its own for pictures (palimpsest erase {call.name} --help)"
            )
        self.refuse_optimizer(call, self.preset)
        before = again.look(self, call, self.runs)
        if (runs := before.runs()) is None:
            ready = self.ready(call, self.model)
            ready.check(call.method)
            if self.dry_run:
                from palimpsest.cli.plan import tell

                names = ", ".join(concept.name for concept in ready.concepts)
                told = call, ready.runner.model, names, len(ready.prompts), self.runs
                tell(*told, dtype=self.precision("low"), optimizer=self.optimizer)
                return None
            self.refuse_device(ready.runner.model)  # before gold is run, too
            how = {"gold": self.gold, "force": self.force, "optimizer": self.optimizer}
            runs = {"erased": ready.edited(call.method, preset=self.preset_of(call), **how)}
        record = runs["erased"].record()
        console.numbers(f"{', '.join(record.names)}, erased by {record.title}", [*runs.items()])
        console.made(runs["erased"].folder)
        short = console.fell_short(record.short)
        before.keep(runs)
        return short


def _tell(run: Run, names: str, left: str) -> int:
    """Show the numbers and the search of a CLIP's or a LLaVA's run; 3 if it fell short.

    Args:
        run: finished.
        names: what was forgotten.
        left: what the search's first figure counts.
    """
    from palimpsest.report import write_report
    from palimpsest.report.sections.layers import next_best

    record = run.record()
    console.numbers(f"{names}, forgotten by {record.title}", [("edited", run)])
    search = record.search
    if best := next_best(search, 5):
        rows = [[t["layer"], *(float(t[k]) for k in ("scale", "forget", "keep"))] for t in best]
        title = f"The best layers ({search.get('rule')}; chosen on the validation pictures)"
        console.table(title, ["layer", "λ", left, "others"], rows)
    with run.locked(console.warn):
        page = write_report([run.folder], run.path("report.html"))
    console.made(page)
    return console.fell_short(record.short)


@dataclass(frozen=True, kw_only=True)
class Forget(Pictures, machine.Machine):
    """The flags of `erase --model clip:…` or `llava:…`, without its name in front."""

    family: ClassVar[str]
    """One of `MODEL_KINDS`."""
    least: ClassVar = {"seed": 0}

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

    @property
    def erase(self) -> Erase:
        """What is asked, as the verb `erase` takes it."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        sets = Sets(**{f.name: own.pop(f.name) for f in fields(Sets) if f.name in own})
        return Erase(**own | {"model": f"{self.family}:{self.model}", "sets": sets})

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Return which preset the method's defaults come from."""
        return self.erase.preset_for(presets)

    def __call__(self, call: Call) -> int | None:
        """Forget, measure, and show the numbers; 3 if a search did not reach its end."""
        return self.erase(call)
