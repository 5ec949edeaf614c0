"""What the README and the page for comparing erasers say can be pasted, line by line."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

import methods
import pages
import pytest

from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES
from palimpsest.runs.folder import Run

PAIRS = [(style, seed) for seed in (188, 288) for style in ("photo", "neon")]
TABLE = [
    *((f"a parachute image in {style} style.", seed, "parachute", style) for style, seed in PAIRS),
    ("a parachute image in mosaic style.", 188, "parachute", "mosaic"),
    ("a cat image in photo style.", 188, "cat", "photo"),
    ("an umbrella image in neon style.", 188, "umbrella", "neon"),
    ("a church image in neon style.", 288, "church", "neon"),
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every method takes a few steps, and a table of prompts lies in a folder of one's own."""
    for registry, names in (
        (ERASERS, ("esd", "uce", "rece")),
        (RECOVERIES, ("memora", "concept_inversion", "restoration")),
    ):
        for name in names:
            method = methods.small(registry, name)
            own = {each.name: getattr(method, each.name) for each in fields(method)}
            monkeypatch.setitem(type(method).presets, "world", own)
    monkeypatch.chdir(tmp_path)
    with Path("prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "seed", "object", "style"), *TABLE])


FEW = {
    "erase": "--draw.steps 2 --force",
    "recover": "--draw.steps 2",
    "evaluate": "--draw.steps 2 --concepts parachute church",
    "audit": "--draw.steps 2 --force --budget 4 --wordings 2 --prompts prompts.csv",
    "world save": "--pictures 6",
    "train-judge": "--epochs 3",
}


def test_the_tour_of_the_readme_can_be_pasted():
    (tour,) = (f for f in pages.fences(pages.ROOT / "README.md", "bash") if "palimpsest list" in f)
    asked = " --prompts prompts.csv"
    pages.walk(tour, FEW | {"erase": FEW["erase"] + asked})
    assert "esd-parachute-" in "".join(json.dumps([p.name for p in Path("runs").iterdir()]))
    page = Path("runs/report.html").read_text()
    assert "Side by side" in page
    assert "Another judge, world LLaVA" in page


def test_erasers_are_compared_on_a_model_of_ones_own():
    (walk,) = (f for f in pages.fences(pages.ROOT / "docs" / "compare.md", "bash"))
    grid = "--draw.steps 2 --pictures 1 --concepts parachute church neon photo"
    first, _, rest = walk.partition("\n")
    pages.walk(first, FEW)
    Path("prompts.csv").replace("mine/prompts.csv")  # fewer of them
    pages.walk(rest, FEW | {"evaluate": grid})
    for name in ("uce", "rece"):
        run = Run.open(next(Path("runs").glob(f"{name}-parachute-*")))
        record = run.record()
        refs = [judge.ref for judge in (record.judge, *record.judges) if judge]
        assert refs == [f"hf:{Path('mine/judge').resolve()}", f"clip:{Path('mine/clip').resolve()}"]
        assert {"κ, object", "SSIM, others"} <= {number.name for number in record.numbers}
    page = Path("report.html").read_text()
    assert "Side by side" in page
    assert "Another judge, CLIP" in page
    assert Path("runs/themes/unlearncanvas.html").is_file()
