"""`palimpsest compare`, its section of the report, and what a width costs in pictures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.erase import RECE, UCE, NegativePrompt
from palimpsest.judge.rates import MEANINGS
from palimpsest.metrics.paired import difference, holm
from palimpsest.models.sampling import Sampling
from palimpsest.report import write_report
from palimpsest.report.load import read
from palimpsest.report.sections.compared import compare
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel
from palimpsest.world import suite

STYLES = ("photo", "sketch", "neon", "mosaic", "watercolor", "engraving")


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model, judge) -> list[Path]:
    """Three erasures on the same 25 pictures, drawn in two steps."""
    asked = [
        Prompt(f"a {name} image in {style} style.", seed, asks={"object": name, "style": style})
        for name in ("parachute", "church")
        for style in STYLES
        for seed in (188, 288)
    ]
    asked.append(replace(asked[-1], guidance=1.0))  # another picture, of the same noise
    quick = model.with_sampling(Sampling(steps=2, guidance=3.0, batch=24))
    runner = Runner(tmp_path_factory.mktemp("compare") / "runs", quick, Panel(judge))
    concept, methods = suite.concept("parachute", "balloon"), (UCE(), RECE(), NegativePrompt())
    return [runner.run(concept, each, On(asked), force=True).folder for each in methods]


def test_the_differences_are_those_of_the_pictures(runs: list[Path]) -> None:
    found = compare([read(folder) for folder in runs])
    assert found.concept == "parachute"
    assert found.methods == ("UCE", "RECE", "NegativePrompt")
    assert {(p.number, p.ours, p.theirs) for p in found.pairs} >= {("UA", "UCE", "RECE")}
    assert len(found.pairs) == 3 * len(found.numbers)
    for title, numbers in found.numbers.items():
        for folder, own in zip(runs, numbers, strict=True):
            recorded = Run.open(folder).record().number(title)
            assert recorded is not None
            assert (own.value, own.low, own.high, own.n) == (
                *(recorded.value, recorded.low, recorded.high),
                recorded.n,
            )
    uce, _, negative = map(read, runs)
    keys = [key for key, p in uce.pictures.items() if p.asks["object"] == "parachute"]
    says = [
        [float(m.pictures[k].labels["object"] != "parachute") for k in keys]
        for m in (uce, negative)
    ]
    by_hand = difference(*says, [uce.pictures[key].cluster for key in keys])
    (pair,) = [
        p for p in found.pairs if (p.number, p.ours, p.theirs) == ("UA", "UCE", "NegativePrompt")
    ]
    assert pair.difference == by_hand
    own = [p for p in found.pairs if p.number == "UA"]
    assert [p.corrected for p in own] == holm([p.difference.p for p in own])


def test_the_command_shows_them(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *runs) == 0
    said = capsys.readouterr().out
    for words in ("UCE − NegativePrompt, UA", "difference", "p, Holm", "points", "world judge"):
        assert words in said


def test_the_report_shows_them(runs: list[Path], tmp_path: Path) -> None:
    page = unescape(write_report(runs, tmp_path / "r.html").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "Side by side: parachute" in text
    assert re.search(r"UCE less NegativePrompt [+-]\d+ points \[", text)
    assert "Side by side" not in write_report(runs[:1], tmp_path / "one.html").read_text()


def test_runs_that_differ_in_more_than_the_method_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(runs[1], tmp_path / runs[1].name)

    def change(**fields: object) -> None:
        record = json.loads((runs[1] / "run.json").read_text())
        (other / "run.json").write_text(json.dumps(record | fields))

    judge = json.loads((runs[1] / "run.json").read_text())["judge"]
    change(judge=judge | {"version": "9"})
    assert run("compare", runs[0], other) == 2
    said = capsys.readouterr().err
    assert "differ in their judge" in said
    assert said.count("\n") == 1
    change(concepts=[{"name": "church", "kind": "object"}])
    assert run("compare", runs[0], other) == 2
    assert "differ in their concept" in capsys.readouterr().err
    change(judge=None)
    assert run("compare", runs[0], other) == 2
    assert "was not judged" in capsys.readouterr().err
    change()
    lines = (other / "images.jsonl").read_text().splitlines()
    (other / "images.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(PalimpsestError, match="differ in their prompts"):
        compare([read(runs[0]), read(other)])
    for words in ([runs[0]], [runs[0], runs[0]], []):
        assert run("compare", *words) == 2
        assert "two different" in capsys.readouterr().err
    original = Run.open(runs[0]).record().original or ""
    assert run("compare", runs[0], runs[0].parent / original) == 2
    assert "about no concept" in capsys.readouterr().err


def test_a_budget_says_how_many_pictures_and_changes_nothing(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()}
    assert run("judge", runs[0], "--budget", 10) == 0
    said = capsys.readouterr().out
    assert "pictures needed" in said
    assert {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()} == before
    shown = {line.split()[0] for line in said.splitlines() if line.split()} & set(MEANINGS)
    assert shown == {n.name for n in Run.open(runs[0]).record().numbers if n.unit == "%"}
    for wrong in (0, -3, 101, "nan"):
        assert run("judge", runs[0], "--budget", wrong) == 2
        assert "--budget" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [shutil.copytree(folder, tmp_path / folder.name) for folder in runs[:2]]
    for folder in bare:
        (folder / "scores.jsonl").unlink()
    assert run("compare", *bare) == 2
    assert "judge all these runs again" in capsys.readouterr().err
    assert "Side by side" not in write_report(bare, tmp_path / "bare.html").read_text()
