"""`palimpsest erase METHOD`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.core.concepts import Concept
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS
from palimpsest.methods import Task
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.runs.scoring import Panel


@dataclass(frozen=True, kw_only=True)
class Erase(machine.Drawing):
    """Make a model forget a concept, and judge what is left."""

    methods: ClassVar[Registry] = ERASERS

    concept: str
    """What shall be forgotten, as a prompt would say it."""
    anchor: str | None = None
    """What takes its place. On the world the visual kin most alike in CLIP's text space is chosen
    when this is left out; elsewhere the method then has none."""
    kind: Kind | None = None
    """What sort of thing it is: decides the sentences that ask for it. The world knows its own;
    elsewhere `object` when left out."""
    model: str = "world"
    """`world` (built in), a Diffusers folder, a .safetensors checkpoint, or a Hub id."""
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
        return machine.choose_preset(self.preset, self.world, presets)

    def __call__(self, call: Call) -> int | None:
        """Erase, judge, and show the numbers; 3 if a search did not reach its end."""
        if self.world:
            suite.concept(self.concept, self.anchor)  # refuse before anything is loaded
        paths.runs_folder(self.runs)
        model = self.load(self.model)
        panel = machine.panel(self.device) if self.world else None
        concept = self._concept(panel)
        prompts = self._prompts(model, concept)
        from palimpsest.erase.gold import Gold
        from palimpsest.runs.asked import On

        runner = machine.runner(call, self.runs, model, panel, self.seed)
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

    def _concept(self, panel: Panel | None) -> Concept:
        if panel is None:
            return Concept(self.concept, self.kind or "object", self.anchor)
        return machine.world_concept(self.concept, self.anchor, panel)

    def _prompts(self, model: Diffusion, concept: Concept) -> list[Prompt]:
        if self.prompts is not None:
            return machine.prompts_from(self.prompts, model)
        return suite.suite(concept) if self.world else concept.prompts(16)
