"""`palimpsest erase METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.sets import Asked
from palimpsest.cli.tree import VERBS, Call
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind, model_kind
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS
from palimpsest.methods import Task
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.runs.scoring import Panel

ELSEWHERE = ("anchor", "judge", "prompts", "gold", "force", "dry_run")
"""Flags that mean nothing to a CLIP or a LLaVA."""


@dataclass(frozen=True, kw_only=True)
class Erase(machine.Drawing):
    """Make a model forget a concept, and judge what is left."""

    methods: ClassVar[Registry] = ERASERS

    concept: tuple[str, ...]
    """What shall be forgotten, as a prompt would say it; several names only of a CLIP or a
    LLaVA."""
    anchor: str | None = None
    """What takes its place. On the world the visual kin most alike in CLIP's text space is chosen
    when this is left out; elsewhere the method then has none."""
    kind: Kind | None = None
    """What sort of thing it is: decides the sentences that ask for it. The world knows its own;
    elsewhere `object` when left out."""
    model: str = "world"
    """`world` (built in), a Diffusers folder, a .safetensors checkpoint, or a Hub id; `clip:` or
    `llava:` and `world`, a Transformers folder or a Hub id."""
    sets: Asked = Asked()
    """For a CLIP or a LLaVA: the pictures to learn from and to measure on."""
    judge: Literal["auto", "world", "none"] = "auto"
    """Who looks at the pictures: `auto` takes the world's judge, concepts and prompts for the
    world and none elsewhere; `world` takes them for another model of the world."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    prompts: Path | None = None
    """A CSV of the prompts to judge by (column `prompt`; optionally `evaluation_seed`,
    `evaluation_guidance`, `case_number` and one column per kind that says what is asked for)."""
    runs: Path = Path("runs")
    """The folder where runs are kept."""
    seed: int = 0
    """Fixes every random draw of the method."""
    gold: bool = True
    """Set beside it the model that never knew the concept, where one is shipped."""
    force: bool = False
    """Erase even what the model hardly knows."""
    dry_run: bool = False
    """Say what would run, for how long and in how much memory, and write nothing."""

    @property
    def world(self) -> bool:
        """Whether the world's judge, concepts and prompts are used."""
        return self.judge == "world" or (self.judge == "auto" and self.model == "world")

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Which preset the method's defaults come from."""
        kind, own = model_kind(self.model)
        return machine.choose_preset(
            self.preset, own == "world" if kind else self.world, presets, kind
        )

    def __call__(self, call: Call) -> int | None:
        """Erase, judge, and show the numbers; 3 if a search did not reach its end."""
        kind, own = model_kind(self.model)
        return self._by_sets(kind, own, call) if kind else self._by_prompts(call)

    def _by_sets(self, kind: str, model: str, call: Call) -> int:
        """Let the verb of that kind of model do it, with the flags of this one."""
        verb, usual = VERBS.load(kind), Erase(concept=self.concept)
        known = {f.name for f in fields(verb)}
        own = {f.name: getattr(self.sets, f.name) for f in fields(self.sets)}
        alien = [f"sets.{n}" for n in own.keys() - known if own[n] != getattr(usual.sets, n)]
        alien += [n for n in ELSEWHERE if getattr(self, n) != getattr(usual, n)]
        if alien:
            flags = ", ".join("--" + name.replace("_", "-") for name in sorted(alien))
            raise PalimpsestError(f"{flags}: of no use for --model {self.model}; leave it out")
        shared = {n: getattr(self, n) for n in ("concept", "preset", "runs", "seed")}
        shared |= {"model": model, "kind": self.kind or "object"}
        shared |= {f.name: getattr(self, f.name) for f in fields(machine.Machine)}
        return verb(**{n: v for n, v in own.items() if n in known}, **shared)(call)

    def _by_prompts(self, call: Call) -> int | None:
        """Erase from a text-to-image model, judged by pictures of prompts."""
        if self.sets != Asked():
            raise PalimpsestError(
                "--sets is for a CLIP or a LLaVA; a method on a text-to-image model has flags of "
                f"its own for pictures (palimpsest erase {call.name} --help)"
            )
        if self.world:
            suite.concept(self._name, self.anchor)  # refuse before anything is loaded
        paths.runs_folder(self.runs)
        model = self.load(self.model)
        panel = machine.panel(self.device) if self.world else None
        concept = self._concept(panel)
        prompts = self._prompts(model, concept)
        from palimpsest.erase.gold import Gold
        from palimpsest.runs.asked import On

        runner = self.runner(call, self.runs, model, panel, self.seed)
        runner.check(call.method, Task((concept,)))  # before gold is run, too
        if self.dry_run:
            from palimpsest.cli.plan import tell

            tell(call, model, concept.name, len(prompts), self.runs)
            return None
        beside = self.gold and not isinstance(call.method, Gold)
        gold = open_run.gold_of(runner, concept, prompts, self.force) if beside else None
        on = On(prompts, gold=gold)
        run = runner.run(concept, call.method, on, preset=call.preset, force=self.force)
        record = run.record()
        console.numbers(f"{concept.name}, erased by {record.title}", [("erased", run)])
        console.say(f"{run.folder}")
        return console.fell_short(record.short)

    @property
    def _name(self) -> str:
        if len(self.concept) != 1:
            raise PalimpsestError(
                f"--concept: one name is wanted, and {len(self.concept)} are given; put a name of "
                "several words in quotes"
            )
        return self.concept[0]

    def _concept(self, panel: Panel | None) -> Concept:
        if panel is None:
            return Concept(self._name, self.kind or "object", self.anchor)
        return machine.world_concept(self._name, self.anchor, panel)

    def _prompts(self, model: Diffusion, concept: Concept) -> list[Prompt]:
        if self.prompts is not None:
            return machine.prompts_from(self.prompts, model)
        return suite.suite(concept) if self.world else concept.prompts(16)
