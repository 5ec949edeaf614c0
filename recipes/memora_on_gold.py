"""Does MemoRa recover, or does it teach? The same attack on ESD's erasure and on gold.

    python recipes/memora_on_gold.py     # resumable; writes docs/results/memora-on-gold.md

One object and one style, each erased by ESD at its world preset; MemoRa at its own, with inverted
and interpolated pictures and with plain ones, on the erased model, gold and the unedited model.
Concepts, budgets and sample sizes stand here and were fixed before the first run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from palimpsest.cli import console, machine, open_run
from palimpsest.core.atomic import write_text
from palimpsest.core.provenance import commit
from palimpsest.erase import ERASERS
from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.models.loading import load_model
from palimpsest.recover import MemoRa
from palimpsest.report import write_report
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.world import suite

CONCEPTS = ("parachute", "van gogh")
PICTURES = ("interpolated", "plain")
MEASURED = 72
"""Pictures judged at each point of a curve."""
OUT = Path(__file__).parents[1] / "docs" / "results" / "memora-on-gold.md"


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/memora-on-gold"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    machine.silence()
    panel = machine.world_panel(chosen.device)
    model = load_model("world", device=chosen.device)
    command = "python recipes/memora_on_gold.py"
    runner = Runner(chosen.runs, model, panel, console.progress(), command)
    blocks = []
    for name in CONCEPTS:
        concept = machine.world_concept(name, None, panel.clip)
        prompts = suite.suite(concept)
        gold = open_run.gold_of(runner, concept, prompts)
        kind = ERASERS.load("esd")
        esd = kind(**kind.presets["world"])
        erased = runner.run(concept, esd, On(prompts, gold=gold), preset="world")
        own = [p for p in prompts if p.wants(concept.kind, concept.name)]
        for pictures in PICTURES:
            changes = {"pictures": pictures, "measure.pictures": MEASURED}
            method = MemoRa(**MemoRa.presets["world"]).changed(changes)
            runs = [
                runner.run(concept, method, On(own, subject, gold))
                for subject in (erased, gold, None)
            ]
            blocks.append((concept.name, pictures, runs))
            print(name, pictures, *(f"{run.record().curve[-1].rate.value:.2f}" for run in runs))
    write_text(chosen.out, page(blocks))
    report = write_report([chosen.runs], chosen.runs / "report.html")
    print(f"written: {chosen.out}, {report}")


def page(blocks: list[tuple[str, str, list[Run]]]) -> str:
    """One table for each concept and sort of pictures."""
    first = blocks[0][2][0].record()
    settings = first.arguments
    lines = [
        "# MemoRa on ESD's erasure and on gold",
        "",
        "Made by `python recipes/memora_on_gold.py`: how often the judge says the concept after so "
        "many steps of MemoRa's LoRA, in per cent with 95 % intervals, and the difference of the "
        "erased to the gold model in points, with a 95 % bootstrap interval over the pictures. "
        f"Rank {settings['rank']}, learning rate {settings['lr']:g}, "
        f"{settings['batch'] * settings['accumulate']} latents a step, n = {MEASURED} pictures at "
        "each point, the same prompts and seeds everywhere. One seed of the LoRA: the interval "
        "does not hold what another would change. What it shows is explained in "
        "[relearning.md](../relearning.md). "
        f"Commit {commit().get('commit', 'unknown')}, {first.device}.",
    ]
    for concept, pictures, runs in blocks:
        curves = [run.record().curve for run in runs]
        above = dict(relearning.at_each_step(curves[0], curves[1]))
        area = relearning.advantage(curves[0], curves[1])
        assert area is not None
        lines += [
            "",
            f"## {concept}, {pictures} pictures",
            "",
            "| step | on ESD's erasure | on gold | on the unedited model | erased above gold |",
            "|---|---|---|---|---|",
            *(
                f"| {row[0]['step']} | {' | '.join(map(share, row))} | "
                f"{points(above[row[0]['step']])} |"
                for row in zip(*curves, strict=True)
            ),
            "",
            f"Relearning advantage (area between the curves): {points(area)}.",
        ]
    return "\n".join(lines) + "\n"


def share(point: dict) -> str:
    """A rate with its interval."""
    value, low, high = (100 * point[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def points(rate: Rate) -> str:
    """A difference with its interval."""
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    return f"**{value:+.1f}** [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
