"""`palimpsest demo`: the whole story on the built-in world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli import console, machine, named, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.judge import opening
from palimpsest.runs.folder import Run
from palimpsest.world import suite

CONCEPT = "parachute"
RATES = ("UA", "IRA", "CRA")


@dataclass(frozen=True, kw_only=True)
class Demo(machine.Drawing):
    """Forget the parachute, try to bring it back, and see: a few minutes, no download, no GPU."""

    runs: Path = Path("runs/demo")
    """The folder where runs and the report are kept; a rerun goes on from there."""
    seed: int = 0
    """Fixes every random draw."""

    def __call__(self, call: Call) -> None:
        """Erase, recover, do the same to gold, report."""
        paths.runs_folder(self.runs)
        model = self.load("world")
        clip = machine.clip("world", self.device)
        from palimpsest.erase.esd import ESD
        from palimpsest.recover.memora import MemoRa
        from palimpsest.runs.asked import On

        concept = named.Named(concept=(CONCEPT,)).wanted(True, clip)[0]
        prompts = suite.suite(concept)
        opened = opening([concept], prompts, self.device)
        panel = machine.panel(machine.WORLDS, opened, clip)
        runner = self.runner(call, self.runs, model, panel, self.seed)
        eraser = ESD(**ESD.presets["world"])
        console.step(f"1. Forgetting the {CONCEPT} (anchor: {concept.anchor}) by ESD")
        gold = open_run.gold_of(runner, concept, prompts)
        erased = runner.run(concept, eraser, On(prompts, gold=gold), preset="world")
        told: list[tuple[str, Run]] = []
        own = [p for p in prompts if p.wants(concept.kind, concept.name)]
        arms = (  # the control is judged by the concept's own prompts, to save time
            ("recovered", "erased model", erased, prompts),
            ("gold, attacked", "model that never knew it", gold, own),
        )
        for number, (title, who, subject, asked) in enumerate(arms, start=2):
            console.step(f"{number}. MemoRa on the {who}")
            method = MemoRa(**MemoRa.presets["world"])
            run = runner.run(concept, method, On(asked, subject, gold), preset="world")
            told.append((title, run))
        self._finish(erased, gold, told)

    def _finish(self, erased: Run, gold: Run | None, told: list[tuple[str, Run]]) -> None:
        from palimpsest.report import write_report

        page = write_report(
            [erased.folder, *(run.folder for _, run in told)], self.runs / "report.html"
        )
        columns = [("erased", erased), told[0], *([("gold", gold)] if gold else [])]
        console.numbers(f"What is left of the {CONCEPT}", columns, RATES)
        console.say(
            "Below each number its 95 % interval.\n"
            "recovered: the erased model after MemoRa. gold: the model that was never shown one."
        )
        console.curves(told)
        console.say(
            "What MemoRa brings back above what it teaches gold was hidden, not gone; the interval "
            "is a bootstrap over the pictures."
        )
        console.made(page, f"The report: {page}")
