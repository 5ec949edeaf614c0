"""Is it gone, or only hidden, and for how long? Seven erasures against four recoveries.

    python recipes/forgetting.py     # resumable; writes docs/results/forgetting.md and a picture

One object and one style, each erased by seven methods at their world presets; every recovery on
each erasure, on gold and on the unedited model, at one budget of gradient evaluations. Concepts,
budget and sample sizes stand here and were fixed before the first run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from palimpsest.cli import console, machine, open_run
from palimpsest.core.atomic import whole, write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.provenance import commit
from palimpsest.core.streams import generator
from palimpsest.erase import ERASERS
from palimpsest.metrics import profile as forgetting
from palimpsest.metrics import relearning
from palimpsest.metrics.profile import Attack, Line, Verdict
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import Curve
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.recover import RECOVERIES
from palimpsest.report import write_report
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.toolbox.relearning_curve import Measured
from palimpsest.world import suite

CONCEPTS = ("parachute", "van gogh")
ERASURES = {
    "ESD": "esd",
    "FMN": "fmn",
    "UCE": "uce",
    "CA": "ablation",
    "SalUn": "salun",
    "SRS-ME": "srs_me",
    "AdvUnlearn": "advunlearn",
}
ATTACKS = {
    "MemoRa": "memora",
    "Illusion": "illusion",
    "Concept Inversion": "concept_inversion",
    "UnlearnDiffAtk": "unlearn_diff_atk",
}
BUDGET = 240
"""Gradient evaluations of one attack: latents that a gradient goes through. What trains something
pays once for all prompts; the prompt attack is a separate attack on each, and pays for each."""
MEASURED = 36
"""Pictures judged at each point of a curve, of the same prompts and seeds everywhere."""
ASKED = 24
"""Prompts of the suite by which erasures, and what recovered weights draw, are judged besides."""
DELTA = 0.15
"""Margin of equivalence with gold."""
MINUTES = 90
"""What it may take on two cores; the sizes above were chosen for it."""
DOCS = Path(__file__).parents[1] / "docs"


def settings(budget: int) -> dict[str, dict[str, Any]]:
    """What makes each attack's world preset spend this budget, a multiple of 120."""
    return {
        "memora": {"steps": budget // 4, "measure": quarters(budget // 4)},
        "illusion": {
            "cuts": (24, 48, 72, 96, 120),
            "batch": 4,
            "epochs": budget // 120,
            "measure.pictures": MEASURED,
        },
        "concept_inversion": {"steps": budget // 8, "batch": 8, "measure": quarters(budget // 8)},
        "unlearn_diff_atk": {
            "timesteps": (300, 500, 700, 900),
            "iterations": budget // 4,
            "prompts": MEASURED,
        },
    }


QUICK: dict[str, dict[str, Any]] = {
    "memora": {
        "steps": 2,
        "measure": Measured((0, 1, 2), pictures=2),
        "interpolation.between": 2,
        "interpolation.pairs": ((1, 2),),
        "interpolation.start_step": 1,
        "interpolation.steps": 4,
    },
    "illusion": {"cuts": (8,), "batch": 8, "epochs": 1, "measure.pictures": 2},
    "concept_inversion": {
        "steps": 1,
        "measure": Measured((0, 1), pictures=2),
        "drawn.pictures": 2,
        "drawn.steps": 2,
    },
    "unlearn_diff_atk": {"timesteps": (500,), "iterations": 8, "prompts": 2},
}
"""A budget of 8 that proves nothing."""


def quarters(steps: int) -> Measured:
    """Measure before, after a quarter, after half, and in the end."""
    return Measured((0, steps // 4, steps // 2, steps), MEASURED)


@dataclass
class Study:
    """What is attacked, by what, and how large everything is."""

    runner: Runner
    attacks: dict[str, Any]
    """Title → the recovery."""
    erasures: dict[str, str]
    asked: int
    measured: int
    """Pictures at each point of a curve."""
    quick: bool

    def subjects(self, concept: Concept) -> Iterator[tuple[str, Run | None, Run | None]]:
        """(title, its run, gold's): the erasures, then gold, then the unedited model."""
        prompts = self.prompts(concept)
        gold = open_run.gold_of(self.runner, concept, prompts)
        for title, name in self.erasures.items():
            kind = ERASERS.load(name)
            method = kind(**kind.presets["world"])
            run = self.runner.run(
                concept, method, On(prompts, gold=gold), preset="world", force=self.quick
            )
            yield title, run, gold
        yield "gold", gold, gold
        yield "unedited", None, gold

    def prompts(self, concept: Concept) -> list:
        """Those of the suite that ask for the concept."""
        asked = suite.suite(concept, self.asked)
        return [p for p in asked if p.wants(concept.kind, concept.name)][: self.asked]

    def curves(self, concept: Concept) -> dict[str, dict[str, Curve]]:
        """Subject → attack → relearning curve; runs what is missing."""
        found: dict[str, dict[str, Curve]] = {}
        for who, subject, gold in self.subjects(concept):
            for title, method in self.attacks.items():
                on = On(self.prompts(concept), subject, gold)
                run = self.runner.run(concept, method, on)
                curve = run.record().curve
                found.setdefault(who, {})[title] = curve
                last = f"{curve[-1].rate.value:.2f}" if curve else "no curve"
                print(concept.name, who, title, last, flush=True)
        return found


# --- the page ---


def lines_of(curves: dict[str, dict[str, Curve]], who: str, budget: int) -> list[Line]:
    """An erasure's forgetting profile."""
    gold, base = curves["gold"], curves["unedited"]
    attacks = [Attack(t, c, gold[t], base[t]) for t, c in curves[who].items()]
    return forgetting.profile(attacks, budget)


def page(study: Study, found: dict[str, dict[str, dict[str, Curve]]], budget: int) -> str:
    """Matrix, profiles and verdicts of every concept."""
    text = [
        "# How long does forgetting last?",
        "",
        f"Made by `python recipes/forgetting.py`, commit {commit().get('commit', 'unknown')}, "
        f"{study.runner.model.device}. Every recovery has the same budget of **{budget} gradient "
        "evaluations** (latents that a gradient goes through; the prompt attack has them for each "
        f"prompt), and n = {study.measured} pictures at each point of a curve, of the same "
        "prompts and seeds everywhere. One seed of each recovery: no interval holds what another "
        "would change. Verdicts and their rule are explained in [evidence.md](../evidence.md); "
        f"δ = {100 * DELTA:.0f} points.",
        "",
        "![Relearning curves, a panel for each concept and recovery](../images/forgetting.png)",
    ]
    for name, curves in found.items():
        text += ["", f"## {name}", "", *matrix(study, curves, budget)]
        text += ["", *profiles(study, curves, budget)]
    return "\n".join([*text, ""])


def matrix(study: Study, curves: dict[str, dict[str, Curve]], budget: int) -> list[str]:
    """Accuracy won back above the subject's own, in points with its interval."""
    subjects = [*study.erasures, "gold"]
    rows = [
        "Points of accuracy won back within the budget, above what the subject showed before, with "
        "95 % bootstrap intervals over the pictures; shaded from 5 (░), 25 (▒), 50 (▓) and 75 (█) "
        "points on. What gold wins back was taught. The last column is the accuracy itself, in "
        "the end on the unedited model: what does not draw the concept even there has no power at "
        "this budget, and says nothing of any erasure.",
        "",
        f"| recovery | {' | '.join(subjects)} | unedited |",
        "|---" * (2 + len(subjects)) + "|",
    ]
    for title in study.attacks:
        cells = [
            cell(relearning.won_back(relearning.within(curves[who][title], budget)))
            for who in subjects
        ]
        end = 100 * relearning.within(curves["unedited"][title], budget)[-1].rate.value
        rows.append(f"| {title} | {' | '.join(cells)} | {end:.0f} % |")
    return rows


SHADES = (("█", 75), ("▓", 50), ("▒", 25), ("░", 5))
"""Signs of the matrix, with the points from which they stand."""


def cell(rate: Rate | None) -> str:
    """One cell of the matrix."""
    if rate is None:
        return "–"
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    shade = next((sign for sign, least in SHADES if value >= least), "")
    return f"{shade} {value:+.0f} [{low:+.0f}, {high:+.0f}]".strip()


def profiles(study: Study, curves: dict[str, dict[str, Curve]], budget: int) -> list[str]:
    """When half of the original accuracy was back, and what all that amounts to."""
    titles = list(study.attacks)
    rows = [
        "Gradient evaluations until half of the original accuracy was back, with 95 % bootstrap "
        "intervals, and the verdict.",
        "",
        f"| erasure | {' | '.join(titles)} | verdict |",
        "|---" * (2 + len(titles)) + "|",
    ]
    for who in study.erasures:
        lines = {line.name: line for line in lines_of(curves, who, budget)}
        said = [str(lines[t].reached[0]) if t in lines else "–" for t in titles]
        rows.append(f"| {who} | {' | '.join(said)} | {told(verdict(lines.values()))} |")
    taught = {line.name: line for line in lines_of(curves, "gold", budget)}
    said = [str(taught[t].reached[0]) if t in taught else "–" for t in titles]
    return [*rows, f"| gold | {' | '.join(said)} | |"]


def verdict(lines: Any) -> Verdict:
    """The verdict at this study's margin."""
    return forgetting.verdict(list(lines), DELTA)


def told(found: Verdict) -> str:
    """A verdict with its reason and what stands behind it."""
    return f"**{found.word}**: {found.why} (n = {found.n})"


# --- the picture ---

SCALE = 2
"""Drawn larger, then shrunk: smooth lines."""
WIDTH, HEIGHT, LEFT, TOP, FOOT = 260, 190, 44, 34, 46
COLOURS = {
    "ESD": "#c8553d",
    "FMN": "#8a5fbf",
    "UCE": "#2e8b57",
    "CA": "#d98e04",
    "SalUn": "#3f83c4",
    "SRS-ME": "#c2478f",
    "AdvUnlearn": "#5b6770",
    "gold": "#b98a1d",
    "unedited": "#b0b0b0",
}


def picture(found: dict[str, dict[str, dict[str, Curve]]], budget: int) -> Image.Image:
    """A row of panels for each concept, a panel for each recovery, a line for each subject."""
    titles = list(next(iter(next(iter(found.values())).values())))
    size = (LEFT + WIDTH * len(titles), (TOP + HEIGHT) * len(found) + FOOT)
    sheet = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11 * SCALE)
    for row, (name, curves) in enumerate(found.items()):
        for column, title in enumerate(titles):
            box = (LEFT + column * WIDTH, TOP + row * (TOP + HEIGHT))
            panel(
                pen, font, box, f"{name}: {title}", {w: c[title] for w, c in curves.items()}, budget
            )
    legend(pen, font, size[1] - FOOT + 20, list(next(iter(found.values()))))
    return sheet.resize(size, Image.Resampling.LANCZOS)


def panel(
    pen: ImageDraw.ImageDraw,
    font: Any,
    corner: tuple[int, int],
    title: str,
    curves: dict[str, Curve],
    budget: int,
) -> None:
    """One recovery of one concept."""
    left, top = corner
    wide, high = WIDTH - 48, HEIGHT - 34

    def at(x: float, y: float) -> tuple[float, float]:
        return SCALE * (left + wide * x / budget), SCALE * (top + high * (1 - y))

    pen.text((SCALE * left, SCALE * (top - 20)), title, fill="#22252a", font=font)
    for level in (0, 0.5, 1):
        pen.line([at(0, level), at(budget, level)], fill="#e3e0d8", width=SCALE)
        spot = (SCALE * (left - 6), at(0, level)[1])
        pen.text(spot, f"{100 * level:.0f}", fill="#676d76", font=font, anchor="rm")
    for x in (0, budget // 2, budget):
        spot = (at(x, 0)[0], SCALE * (top + high + 4))
        pen.text(spot, str(x), fill="#676d76", font=font, anchor="mt")
    for who, curve in curves.items():
        points = [at(p.evaluations, p.rate.value) for p in relearning.within(curve, budget)]
        if relearning.won(curve):  # nothing was left to search for
            points.append(at(budget, 1))
        if len(points) > 1:
            wider = 2 if who in ("gold", "unedited") else 1
            pen.line(points, fill=COLOURS[who], width=wider * 2 * SCALE, joint="curve")


def legend(pen: ImageDraw.ImageDraw, font: Any, y: int, subjects: Sequence[str]) -> None:
    """Which line is whose, and what the axes are."""
    x = LEFT
    for who in subjects:
        pen.line([(SCALE * x, SCALE * y), (SCALE * (x + 18), SCALE * y)], COLOURS[who], 3 * SCALE)
        pen.text((SCALE * (x + 24), SCALE * y), who, fill="#22252a", font=font, anchor="lm")
        x += 40 + int(pen.textlength(who, font=font) / SCALE)
    said = "accuracy in % over gradient evaluations"
    pen.text((SCALE * x, SCALE * y), said, fill="#676d76", font=font, anchor="lm")


# --- what it will take ---


def plan(model: Diffusion, study: Study, concepts: Sequence[str], budget: int) -> str:
    """Sizes and time, before anything is spent."""
    runs = len(concepts) * (len(study.erasures) + 2)
    count = [method.evaluations() for method in study.attacks.values()]
    drawn = 5 * len(study.attacks) * study.measured * 2 * model.sampling.steps
    free, graded = (runs * sum(pair[i] for pair in count) for i in (0, 1))
    with torch.no_grad():
        x, cond = model.noise(32, generator(0)), model.embed([""])
        model.eps(x[:1], torch.tensor(500), cond)
        start = time.perf_counter()
        model.eps(x, torch.tensor(500), cond)
        each = (time.perf_counter() - start) / len(x)
    seconds = each * (free + runs * drawn + 3 * graded)
    return (
        f"{len(concepts)} concepts, {len(study.erasures)} erasures, gold and the unedited model, "
        f"{len(study.attacks)} recoveries: {runs * len(study.attacks)} attacks of {budget} "
        f"gradient evaluations, {study.measured} pictures a point; about "
        f"{console.duration(seconds)} at this moment's speed, besides the erasures. The sizes were "
        f"chosen for {MINUTES} min on two idle cores."
    )


def main() -> None:
    """Run what is missing, then write page, picture and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "forgetting.md")
    parser.add_argument("--image", type=Path, default=DOCS / "images" / "forgetting.png")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny setting: proves nothing")
    parser.add_argument(
        "--only",
        choices=CONCEPTS,
        help="run what this concept needs and write no page: so each can have a core of its own",
    )
    chosen = parser.parse_args()
    machine.silence()
    panel_ = machine.world_panel(chosen.device)
    model = load_model("world", device=chosen.device)
    concepts, erasures, budget, n, asked = CONCEPTS, ERASURES, BUDGET, MEASURED, ASKED
    changes, titles = settings(BUDGET), list(ATTACKS)
    if chosen.only:
        concepts = (chosen.only,)
    if chosen.quick:
        concepts, erasures, budget, n, asked = concepts[:1], {"UCE": "uce"}, 8, 2, 2
        changes, titles = QUICK, [t for t in titles if ATTACKS[t] in RECOVERIES]
        model.sampling = replace(model.sampling, steps=2)
    attacks = {}
    for title in titles:
        kind = RECOVERIES.load(ATTACKS[title])
        attacks[title] = kind(**kind.presets["world"]).changed(changes[ATTACKS[title]])
    command = "python recipes/forgetting.py"
    runner = Runner(chosen.runs, model, panel_, console.progress(), command)
    study = Study(runner, attacks, dict(erasures), asked, n, chosen.quick)
    print(plan(model, study, concepts, budget), flush=True)
    for title, method in attacks.items():
        print(f"  {title}: {asdict(method)}", flush=True)
    named = [machine.world_concept(name, None, panel_.clip) for name in concepts]
    found = {concept.name: study.curves(concept) for concept in named}
    if chosen.only:
        return
    write_text(chosen.out, page(study, found, budget))
    with whole(chosen.image) as part:
        picture(found, budget).save(part, format="PNG")
    report = write_report([chosen.runs], chosen.runs / "report.html")
    print(f"written: {chosen.out}, {chosen.image}, {report}")


if __name__ == "__main__":
    main()
