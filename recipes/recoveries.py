"""Every recovery on ESD's object and style, beside the controls that make it evidence.

    python recipes/recoveries.py     # resumable; writes docs/results/recoveries.md and a picture

Each recovery at its world preset, on three subjects: ESD's erasure, one by ESD that was stopped
early, and gold. The early one separates an attack without power from an erasure that withstands
it; the unedited model is in `recipes/forgetting.py`. Concepts, settings and sample sizes stand here
and were fixed before the first run; presets were tuned on other seeds (prompts' from 5500 on, the
method's 7).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from palimpsest.cli import console, machine, open_run
from palimpsest.core.atomic import whole, write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.provenance import commit
from palimpsest.erase import ERASERS
from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import Curve, CurvePoint
from palimpsest.models.loading import load_model
from palimpsest.recover import RECOVERIES
from palimpsest.report import write_report
from palimpsest.runs import images as gallery
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.world import suite

CONCEPTS = ("parachute", "van gogh")
EARLY = {"parachute": 40, "van gogh": 25}
"""Steps after which the early erasure stopped: it leaves some of the concept."""
MEASURED = 36
"""Pictures judged at each point of a curve, of the same prompts and seeds everywhere."""
COUNTED = {
    "unlearn_diff_atk": "prompts",
    "p4d": "prompts",
    "ring_a_bell": "prompts",
    "noising": "pictures",
}
"""The setting that is their number, where it is not `measure.pictures`."""
ASKED = 24
"""Prompts of the suite by which erasures, and what recovered weights draw, are judged besides."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Restoration": ("restoration", {}),
    "MemoRa": ("memora", {}),
    "MemoRa, published offset": ("memora", {"interpolation.offset": "published"}),
    "Illusion": ("illusion", {}),
    "Benign fine-tuning": ("benign", {}),
    "Concept Inversion": ("concept_inversion", {}),
    "UnlearnDiffAtk": ("unlearn_diff_atk", {}),
    "P4D": ("p4d", {}),
    "Ring-A-Bell": ("ring_a_bell", {}),
    "Noising probe": ("noising", {}),
    "Noising probe, in-painting": ("noising", {"shown": "border"}),
}
"""Title → the recovery and what differs from its preset: every one of the box."""
QUICK: dict[str, dict[str, Any]] = {
    "esd": {"steps": 2, "latents.pictures": 4, "latents.steps": 2},
    "restoration": {},
    "noising": {"levels": (400,), "covered": (50,), "sampling.steps": 2},
}
"""A setting that proves nothing: these alone."""
SUBJECTS = ("erased", "early", "gold")
DOCS = Path(__file__).parents[1] / "docs"
CELL, GAP, LEFT, EACH = 72, 4, 190, 4
"""Of the picture: a cell's side, the gap between cells, the column of names, pictures a subject."""


@dataclass
class Row:
    """One recovery of one concept, on every subject that it can be run on."""

    title: str
    concept: Concept
    runs: dict[str, Run]

    def end(self, who: str) -> CurvePoint | None:
        """What came back in the end on a subject."""
        return self._curve(who)[-1] if who in self.runs else None

    def start(self, who: str) -> CurvePoint | None:
        """What was there before."""
        return self._curve(who)[0] if who in self.runs else None

    def above_gold(self) -> Rate | None:
        """In the end, on the erased model less on gold."""
        if "gold" not in self.runs:
            return None
        found = relearning.at_each_step(self._curve("erased"), self._curve("gold"))
        return found[-1][1] if found else None

    def _curve(self, who: str) -> Curve:
        return self.runs[who].record().curve


def rows(runner: Runner, concept: Concept, asked: int, quick: bool) -> Iterator[Row]:
    """Run what is missing, one recovery after another."""
    prompts = [p for p in suite.suite(concept, asked) if p.wants(concept.kind, concept.name)]
    kind = ERASERS.load("esd")
    world = kind(**kind.presets["world"]).changed(QUICK["esd"] if quick else {})
    gold = open_run.gold_of(runner, concept, prompts)
    on = On(prompts, gold=gold)
    early = world.changed({"steps": 1 if quick else EARLY[concept.name]})
    subjects = {
        "erased": runner.run(concept, world, on, preset="world"),
        "early": runner.run(concept, early, on),
        "gold": gold,
    }
    for title, (name, changes) in VARIANTS.items():
        if quick and name not in QUICK:
            continue
        recovery = RECOVERIES.load(name)
        counted = {COUNTED.get(name, "measure.pictures"): 2 if quick else MEASURED}
        method = recovery(**recovery.presets["world"]).changed(changes | counted)
        method = method.changed(QUICK[name] if quick else {})
        fit = SUBJECTS if name != "restoration" else SUBJECTS[:2]  # gold has no patch to take out
        runs = {who: runner.run(concept, method, On(prompts, subjects[who], gold)) for who in fit}
        row = Row(title, concept, runs)
        print(concept.name, title, *(told(row.end(who)) for who in SUBJECTS), flush=True)
        yield row


# --- the page ---


def page(found: Sequence[Row]) -> str:
    """A table for each concept."""
    record = found[0].runs["erased"].record()
    text = [
        "# Every recovery on one object and one style",
        "",
        f"Made by `python recipes/recoveries.py`, commit {commit().get('commit', 'unknown')}, "
        f"{record.device}. Each recovery at its world preset, one seed. How often the judge "
        "says the concept in the end, in per cent with 95 % Wilson intervals, n = "
        f"{found[0].runs['erased'].record().curve[-1].rate.n} pictures of the same prompts and "
        "seeds everywhere; in parentheses what it said before. *Above gold* is the erased model "
        "less gold, in points with a 95 % bootstrap interval over the pictures. The *early* "
        "erasure is ESD stopped after "
        + ", ".join(f"{steps} steps ({name})" for name, steps in EARLY.items())
        + ": an attack that wins there and not on the finished erasure works, and the erasure "
        "held. *Gradients* are latents that a gradient went through, for each prompt where prompts "
        "are attacked one by one; *queries* are pictures that the judge was asked about to decide "
        "when to stop. The noising probe's figures are those of its highest level: the least is "
        "shown of the picture there. The pictures of recoveries that change weights answer the "
        "suite's prompts, which name an object and a style; the table counts the concept's own "
        "sentences, of which some name a style alone.",
        "",
        "![What each recovery drew](../images/recoveries.jpg)",
    ]
    for name in dict.fromkeys(row.concept.name for row in found):
        text += [
            "",
            f"## {name}",
            "",
            "| recovery | ESD | early | gold | above gold | gradients | queries | s |",
            "|---|---|---|---|---|---|---|---|",
            *(line(row) for row in found if row.concept.name == name),
        ]
    return "\n".join([*text, ""])


def line(row: Row) -> str:
    """One line of a table."""
    record = row.runs["erased"].record()
    cells = [f"{told(row.end(who))}{before(row, who)}" for who in SUBJECTS]
    cost = [
        str(record.evaluations),
        str(record.queries or "–"),
        f"{record.seconds.get('train', 0):.0f}",
    ]
    return f"| {row.title} | {' | '.join([*cells, points(row.above_gold()), *cost])} |"


def told(point: CurvePoint | None) -> str:
    """A rate with its interval."""
    if point is None:
        return "–"
    value, low, high = (100 * end for end in (point.rate.value, point.rate.low, point.rate.high))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def before(row: Row, who: str) -> str:
    """The rate before, where the curve begins before the attack."""
    point = row.start(who)
    if point is None or "Noising" in row.title:
        return ""
    return f" ({100 * point.rate.value:.0f})"


def points(rate: Rate | None) -> str:
    """A difference with its interval."""
    if rate is None:
        return "–"
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    return f"**{value:+.0f}** [{low:+.0f}, {high:+.0f}]"


# --- the picture ---


def sheet(found: Sequence[Row]) -> Image.Image:
    """The first pictures that every recovery drew of each subject, a row for each recovery."""
    step, head = CELL + GAP, 20
    block = EACH * step + 3 * GAP
    height = (head + 2 * GAP) * len({row.concept.name for row in found}) + step * len(found)
    made = Image.new("RGB", (LEFT + block * len(SUBJECTS), height), "white")
    pen, y, seen = ImageDraw.Draw(made), 0, set()
    for row in found:
        if row.concept.name not in seen:
            seen.add(row.concept.name)
            y += 2 * GAP
            pen.text((4, y + 4), row.concept.name.upper(), fill="black")
            for i, who in enumerate(SUBJECTS):
                pen.text((LEFT + i * block, y + 4), who, fill="black")
            y += head
        pen.text((4, y + CELL // 2 - 6), row.title, fill="black")
        for i, who in enumerate(SUBJECTS):
            for k, file in enumerate(files(row, who)):
                with Image.open(file) as picture:
                    spot = (LEFT + i * block + k * step, y)
                    made.paste(picture.resize((CELL, CELL)), spot)
        y += step
    return made


def files(row: Row, who: str) -> list[Path]:
    """The first pictures of a subject after the recovery; none where it cannot be run."""
    if who not in row.runs:
        return []
    run = row.runs[who]
    return [run.path(gallery.picture_name(p)) for p in gallery.asked(run)[:EACH]]


def main() -> None:
    """Run what is missing, then write page, picture and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/recoveries"))
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "recoveries.md")
    parser.add_argument("--image", type=Path, default=DOCS / "images" / "recoveries.jpg")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny setting: proves nothing")
    parser.add_argument(
        "--only",
        choices=CONCEPTS,
        help="run what this concept needs and write no page: so each can have a core of its own",
    )
    chosen = parser.parse_args()
    machine.silence()
    panel = machine.world_panel(chosen.device)
    model = load_model("world", device=chosen.device)
    if chosen.quick:
        model.sampling = replace(model.sampling, steps=2)
    command = "python recipes/recoveries.py"
    runner = Runner(chosen.runs, model, panel, console.progress(), command)
    names = (chosen.only,) if chosen.only else CONCEPTS[: 1 if chosen.quick else None]
    found = [
        row
        for name in names
        for row in rows(
            runner,
            machine.world_concept(name, None, panel.clip),
            2 if chosen.quick else ASKED,
            chosen.quick,
        )
    ]
    if chosen.only:
        return
    write_text(chosen.out, page(found))
    with whole(chosen.image) as part:
        sheet(found).save(part, format="JPEG", quality=88)
    report = write_report([chosen.runs], chosen.runs / "report.html")
    print(f"written: {chosen.out}, {chosen.image}, {report}")


if __name__ == "__main__":
    main()
