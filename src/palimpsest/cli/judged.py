"""Flags of the commands that make an erasing run of a text-to-image model, and what they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.cli import machine, open_run, paths
from palimpsest.cli.named import Named, kind_and_name
from palimpsest.cli.tables import Table, names_of
from palimpsest.cli.tree import Call
from palimpsest.core.concepts import Concept
from palimpsest.core.kinds import Optimizer
from palimpsest.core.prompts import Prompt
from palimpsest.judge import opening
from palimpsest.methods import Eraser, Task
from palimpsest.runs.folder import Run
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.runs.runner import Runner


@dataclass(frozen=True)
class Ready:
    """A runner with a model, and what is asked of it."""

    runner: Runner
    concepts: tuple[Concept, ...]
    prompts: list[Prompt]

    def check(self, method: Eraser) -> None:
        """Refuse what the method cannot do, before anything is spent.

        Raises:
            PalimpsestError: as of the runner.
        """
        self.runner.check(method, Task(self.concepts))

    def edited(
        self,
        method: Eraser,
        *,
        preset: str = "",
        gold: bool = True,
        force: bool = False,
        optimizer: Optimizer = "own",
    ) -> Run:
        """Return the run of a method, beside gold where there is one.

        Args:
            method: an eraser, which `check` did not refuse.
            preset: where its settings came from.
            gold: whether gold is set beside it.
            force: erase even what the model hardly knows.
            optimizer: what the method's training takes its steps by.
        """
        from palimpsest.erase.gold import Gold
        from palimpsest.runs.asked import On

        beside = gold and len(self.concepts) == 1 and not isinstance(method, Gold)
        asked = self.runner, self.concepts[0], self.prompts, force
        on = On(self.prompts, gold=open_run.gold_of(*asked) if beside else None)
        how: dict[str, Any] = {"preset": preset, "force": force, "optimizer": optimizer}
        return self.runner.run(self.concepts, method, on, **how)


@dataclass(frozen=True, kw_only=True)
class Judged(Named, Table, machine.Drawing):
    """What an edited model is asked, who looks, and where the runs are kept."""

    judge: tuple[str, ...] = ("auto",)
    """Who looks at the pictures, one or several (docs/judges.md): `hf:ID` or a folder, `clip:ID`,
    `vlm:ID`, `vit:FILE`, `nudenet`, `opennsfw`, `face:FOLDER`, `world`. Methods may ask the first;
    the others say how far they agree. `auto` takes the world's judge and its CLIP on the world, and
    nobody elsewhere; `none` nobody."""
    class_map: Path | None = None
    """For `hf:` and `vit:`: a JSON file of a classifier's label → the concept's name."""
    prompts: Path | None = None
    """A table of the prompts to judge by: CSV with a column `prompt`; optionally seeds, guidances
    and what is asked for, by the names that benchmarks give them (docs/runs.md)."""
    runs: Path = Path("runs")
    """The folder where runs are kept."""
    seed: int = 0
    """Fixes every random draw of the method."""

    def of_world(self, model: str) -> bool:
        """Return whether the world's concepts and prompts are used for a model."""
        own = any(word == "world" or word.endswith(":world") for word in self.judge)
        return own or (self.judge != ("none",) and model == "world")

    def for_world(self, model: str) -> bool:
        """Return whether the world's presets are taken for a model: it is the world, or like it."""
        return model == "world" or self.of_world(model)

    def ready(self, call: Call, model: str, look_with: str | None = None) -> Ready:
        """Refuse what can be refused early, then load what looks and what is looked at.

        Args:
            call: what the command was told.
            model: the base model by the name that a person gave.
            look_with: a CLIP that looks at the pictures in place of the world's.
        """
        mine, words = self.of_world(model), machine.judges_of(self.judge, model == "world")
        mapped = machine.class_map(self.class_map)
        _, table = self.asked(model)
        paths.runs_folder(self.runs)
        machine.check_look_with(look_with, mine)
        loaded = self.load(model)
        clip = machine.clip("world", self.device) if mine else None
        concepts = self.wanted(self._names_world(model), clip)
        if look_with is not None:
            clip = machine.clip(look_with, self.device)
        machine.warn_overlong(loaded, table, self.prompts)
        prompts = [*table.values()] or usual(concepts, mine)
        opened = replace(opening(concepts, prompts, self.device), class_map=mapped)
        looks = machine.panel(words, opened, clip)
        machine.warn_blind(looks, concepts)
        return Ready(self.runner(call, self.runs, loaded, looks, self.seed), concepts, prompts)

    def asked(self, model: str) -> tuple[tuple[Concept, ...], dict[int, Prompt]]:
        """Return the concepts and the table of prompts, if any; nothing is loaded.

        Args:
            model: the base model by the name that a person gave.

        Raises:
            PalimpsestError: a concept, a judge or a table that there is not.
        """
        machine.judges_of(self.judge, model == "world")
        machine.class_map(self.class_map)
        world = self._names_world(model)
        concepts = self.wanted(world)
        return concepts, self.table(self.prompts, "--prompts", names_of(concepts, world))

    def pictures(self, model: str) -> int:
        """Return how many pictures an edited model is asked for; nothing is loaded.

        Args:
            model: the base model by the name that a person gave.

        Raises:
            PalimpsestError: as of `asked`.
        """
        concepts, table = self.asked(model)
        return len(table) or len(usual(concepts, self.of_world(model)))

    def _names_world(self, model: str) -> bool:
        """Return whether the concepts are the world's."""
        named = {kind_and_name(word)[1] for word in self.concept}
        return self.of_world(model) or (model == "world" and named <= {*suite.NAMES})

    def imported(
        self,
        call: Call,
        model: str,
        source: Path,
        word: str | None = None,
        force: bool = False,
    ) -> Run:
        """Return a run of what others published, like any erasing run.

        Args:
            call: what the command was told.
            model: the base model by the name that a person gave.
            source: what was published.
            word: of a textual inversion, whose place it takes.
            force: judge even what the base hardly knows.
        """
        from palimpsest.erase.imported import Imported

        method = Imported(machine.published(source).absolute(), word)
        method.place()  # refused before the model is loaded
        ready = self.ready(call, model)
        ready.check(method)
        return ready.edited(method, force=force)


def usual(concepts: tuple[Concept, ...], world: bool) -> list[Prompt]:
    """Return what is asked where no table says it: the world's suite, or each concept directly."""
    return suite.suite(concepts) if world else [p for c in concepts for p in c.prompts(16)]
