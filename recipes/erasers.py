"""Every eraser on one object, one style, one identity and the hazard sign: one table, and pictures.

    python recipes/erasers.py            # resumable; writes docs/results/erasers.md and a picture
                                         # of each eraser's work to docs/images/erasers/

Concepts, seeds and sample sizes stand here and were fixed before any setting was tuned; tuning used
other seeds (5000 and up). No setting differs between concepts.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw

from palimpsest.cli import console, machine, open_run
from palimpsest.core.atomic import whole, write_text
from palimpsest.core.legend import KEY, legend
from palimpsest.core.prompts import Prompt
from palimpsest.erase import ERASERS
from palimpsest.judge.rates import MEANINGS
from palimpsest.methods import Number
from palimpsest.models.loading import load_model
from palimpsest.runs import images as gallery
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.world import suite

CONCEPTS = ("parachute", "van gogh", "mira voss", "hazard sign")
ASKED = 72
"""Prompts that ask for the concept."""
ROUNDS = 1
"""Seeds of every other object in every style; identities and the rest take four times as many."""
VARIANTS = {
    "ESD-x": ("esd", {}),
    "ESD-u": ("esd", {"train": "noxattn"}),
    "Concept Ablation": ("ablation", {}),
    "CiE": ("cie", {}),
    "SRS-ME": ("srs_me", {}),
    "Forget-Me-Not": ("fmn", {}),
    "MACE": ("mace", {}),
    "SPM": ("spm", {}),
    "SalUn": ("salun", {}),
    "EraseDiff": ("erasediff", {}),
    "Scissorhands": ("scissorhands", {}),
    "UCE": ("uce", {}),
    "RECE": ("rece", {}),
    "AdvUnlearn": ("advunlearn", {}),
    "SLUG": ("slug", {}),
    "negative prompt": ("negative_prompt", {}),
}
"""Title → the eraser and what differs from its preset: every method of diffusion models."""
DISTANCES = ("world-FID, others", "world-FID to gold, others", "world-FID to gold, concept")
DOCS = Path(__file__).parents[1] / "docs"
OWN, REST = 6, 4
"""Pictures of the concept, and of other things, that are shown of each run."""
CELL, GAP, LEFT = 72, 4, 150


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/erasers"))
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "erasers.md")
    parser.add_argument("--images", type=Path, default=DOCS / "images" / "erasers")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    machine.silence()
    panel = machine.world_panel(chosen.device)
    model = load_model("world", device=chosen.device)
    runner = Runner(chosen.runs, model, panel, console.progress(), "python recipes/erasers.py")
    rows: list[tuple[str, str, Run]] = []
    for name in CONCEPTS:
        concept = machine.world_concept(name, None, panel.clip)
        prompts = suite.suite(concept, ASKED, ROUNDS)
        gold = open_run.gold_of(runner, concept, prompts)
        for title, (method, changes) in VARIANTS.items():
            kind = ERASERS.load(method)
            eraser = kind(**{**kind.presets["world"], **changes})
            run = runner.run(concept, eraser, On(prompts, gold=gold), preset="world")
            rows.append((concept.kind, title, run))
            print(name, title, *cells(run))
        if gold is not None:
            rows.append((concept.kind, "gold", gold))
    write_text(chosen.out, table(rows))
    for title, theirs in groupby(sorted(rows, key=lambda row: row[1]), key=lambda row: row[1]):
        with whole(chosen.images / f"{title.lower().replace(' ', '-')}.jpg") as part:
            strip([run for _, _, run in theirs]).save(part, format="JPEG", quality=90)
    print(f"written: {chosen.out} and {chosen.images}")


def strip(runs: list[Run]) -> Image.Image:
    """What one eraser did to each concept: the unedited model's pictures above its own."""
    step, head = CELL + GAP, 18
    block = 2 * step + 2 * GAP
    sheet = Image.new("RGB", (LEFT + (OWN + REST) * step + 4 * GAP, head + len(runs) * block))
    sheet.paste("white", (0, 0, *sheet.size))
    pen = ImageDraw.Draw(sheet)
    pen.text((LEFT, 2), "asked for what was erased", fill="black")
    pen.text((LEFT + OWN * step + 4 * GAP, 2), "asked for something else", fill="black")
    for i, run in enumerate(runs):
        record, top = run.record(), head + i * block
        before = Run.open(run.folder.parent / (record.original or ""))
        for y, (who, made) in enumerate((("unedited", before), ("erased", run))):
            name = record.names[0]
            pen.text((4, top + y * step + CELL // 2 - 12), f"{name}\n{who}", fill="black")
            for x, prompt in enumerate(shown(run)):
                left = LEFT + x * step + (4 * GAP if x >= OWN else 0)
                with Image.open(made.path(gallery.picture_name(prompt))) as picture:
                    sheet.paste(picture.resize((CELL, CELL)), (left, top + y * step))
    return sheet


def shown(run: Run) -> list[Prompt]:
    """The first prompts for the concept, then some for its own kind and for the other kinds."""
    (concept,) = run.record().concepts
    name, kind = concept.name, concept.kind
    asked = gallery.asked(run)
    rest = [p for p in asked if not p.wants(kind, name)]
    kin = [p for p in rest if kind in p.asks] or rest
    other = [p for p in rest if kind not in p.asks] or rest
    some = [
        group[k * len(group) // (REST // 2)] for group in (kin, other) for k in range(REST // 2)
    ]
    return [p for p in asked if p.wants(kind, name)][:OWN] + some


def cells(run: Run, numbers: str = "numbers") -> list[str]:
    """UA, IRA, CRA and the distances of one run, as text."""
    found = {row.name: row for row in getattr(run.record(), numbers)}
    rates = [found.get(name) for name in ("UA", "IRA", "CRA")]
    distances = [found.get(name) for name in DISTANCES]
    return [
        *("–" if row is None else share(row) for row in rates),
        *("–" if row is None else f"{row.value:.2f}" for row in distances),
    ]


def share(row: Number) -> str:
    """A rate with its interval and n."""
    value, low, high = (100 * end for end in (row.value, row.low, row.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}] ({row.n})"


def table(rows: list[tuple[str, str, Run]]) -> str:
    """The page: one block a concept, the unedited model first."""
    lines = [
        "# Erasers on the built-in world",
        "",
        "Made by `python recipes/erasers.py`; rates in per cent with 95 % Wilson intervals and n. "
        "Seconds were taken while the machine did other work too. "
        f"{made_at([run for _, _, run in rows])}, {rows[0][2].record().device}.",
        "",
        "World-FID is to the unedited model's pictures of all other prompts, then to gold's "
        "pictures of those and of the concept's own prompts, where there is a gold model (see "
        "[evidence.md](../evidence.md)).",
        "",
        f"{KEY}. {explained()}.",
        "",
        "| concept | method | UA ↑ | IRA ↑ | CRA ↑ | FID, others ↓ | FID to gold, others ↓ "
        "| FID to gold, concept ↓ | train s | peak MB | patch kB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for kind, title, run in rows:
        record = run.record()
        concept = f"{record.names[0]} ({kind})"
        if concept not in seen:
            seen.add(concept)
            lines.append(f"| {concept} | unedited | {' | '.join(cells(run, 'baseline'))} | | | |")
        cost = [
            f"{record.seconds.get('train', 0):.1f}",
            f"{record.memory_mb.get('train', 0):.0f}",
            f"{(record.patch_bytes or 0) / 1000:.0f}",
        ]
        lines.append(f"| {concept} | {title} | {' | '.join([*cells(run), *cost])} |")
    return "\n".join(lines) + "\n"


def explained() -> str:
    """What the rates in the table mean."""
    found = legend(MEANINGS.items())
    return ". ".join(f"{name}: {found[name]}" for name in ("UA", "IRA", "CRA"))


def made_at(runs: list[Run]) -> str:
    """The commits that the runs were made at: a table that is resumed may have several."""
    found = [run.record().git.get("commit", "unknown") for run in runs]
    counts = {commit: found.count(commit) for commit in dict.fromkeys(found)}
    told = ", ".join(f"{commit} ({n} of {len(runs)} runs)" for commit, n in counts.items())
    return f"Made at {told}"


if __name__ == "__main__":
    main()
