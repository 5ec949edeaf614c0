"""The recipes run from end to end at a tiny setting, and what they fixed is the papers'."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1] / "recipes"


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_scenarios_leave_erased_what_the_paper_says():
    restore = recipe("restore")
    number = {name: str(i) for i, name in enumerate(restore.ERASED)}
    gone = {
        scenario: ["".join(number[n] for n in state.names) for _, state, _ in moments]
        for scenario in restore.SCENARIOS
        if (moments := list(restore.moments(scenario)))
    }
    assert gone == {
        "S1": ["012345", "2345", "345"],
        "S2": ["012345", "0125", "012"],
        "S3": ["024", "4", "134", "34", "345"],
        "S4": ["012", "12", "1234", "234", "2345", "345"],
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def start(name: str, *words) -> None:
        monkeypatch.setattr(sys, "argv", [name, "--quick", *map(str, words)])
        recipe(name).main()

    return start


def test_restore_writes_its_page_and_its_picture(run, tmp_path: Path):
    out, image = tmp_path / "restore.md", tmp_path / "restore.png"
    words = ("--runs", tmp_path / "runs", "--out", out, "--image", image)
    run("restore", *words)
    first = out.read_text()
    rows = [line.split(" | ") for line in first.splitlines() if "| t" in line]
    held = [r for r in rows if r[1] == "literal" and not r[2].startswith("erased")]
    assert len(held) == 2 + 3 + 3  # kept, the watermark, and from t1 on what is restored
    assert all(float(row[-1].rstrip(" |")) <= 1 for row in held), "within 1/255 of the original"
    assert "A concept named later" in first
    with Image.open(image) as picture:
        assert picture.width > 4 * 64
    run("restore", *words)
    assert out.read_text() == first, "a second run trains and draws nothing"


def test_iterative_writes_its_tables(run, tmp_path: Path):
    run("iterative", "--out", tmp_path / "iterative.md")
    assert (tmp_path / "iterative.md").read_text().count("\n| ") == 4 + 2


def test_the_table_of_erasers_leaves_none_out():
    from palimpsest.cli.bench.campaign import read
    from palimpsest.erase import OF_DIFFUSION

    campaign = read(ROOT / "erasers.yaml")
    others = {"gold", "imported", "fmn_correction"}  # no methods; parts a word's meanings
    assert {variant.method for variant in campaign.erasers} == {*OF_DIFFUSION} - others


@pytest.mark.slow
def test_forgetting_writes_its_matrix_and_its_picture(run, tmp_path: Path, capsys):
    out, image = tmp_path / "forgetting.md", tmp_path / "forgetting.png"
    words = ("--runs", tmp_path / "runs", "--out", out, "--image", image)
    run("forgetting", *words)
    assert "attacks of 8 gradient evaluations" in capsys.readouterr().out.splitlines()[0]
    text = out.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| MemoRa")]
    assert len(rows) == 1
    assert rows[0].count("[") == 2, "the erasure and gold, each with its interval"
    assert "| UCE | " in text
    with Image.open(image) as picture:
        assert picture.width > 260
    run("forgetting", *words)
    assert out.read_text() == text, "a second run attacks nothing"


def test_recoveries_writes_its_tables_and_its_picture(run, tmp_path: Path):
    out, image = tmp_path / "recoveries.md", tmp_path / "recoveries.jpg"
    words = ("--runs", tmp_path / "runs", "--out", out, "--image", image)
    run("recoveries", *words)
    text = out.read_text()
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert lines["| Restoration"].count("[") == 2, "gold has no patch that could be taken out"
    assert lines["| Noising probe"].count("[") == 4, "three subjects, and what is above gold"
    with Image.open(image) as picture:
        assert picture.height > 3 * 72
    run("recoveries", *words)
    assert out.read_text() == text, "a second run attacks nothing"


def test_the_table_of_recoveries_leaves_none_out():
    from palimpsest.recover import RECOVERIES

    made = recipe("recoveries")
    assert {method for method, _ in made.VARIANTS.values()} == {*RECOVERIES.own} - {
        "replay"
    }  # of another's
    for method, changes in made.VARIANTS.values():
        kind = RECOVERIES.load(method)
        counted = {made.COUNTED.get(method, "measure.pictures"): made.MEASURED}
        assert kind(**kind.presets["world"]).changed(changes | counted)


def test_every_attack_of_forgetting_spends_the_stated_budget():
    from palimpsest.recover import RECOVERIES

    forgetting = recipe("forgetting")
    assert forgetting.settings(forgetting.BUDGET).keys() == set(forgetting.ATTACKS.values())
    for changes, budget in ((forgetting.settings(240), 240), (forgetting.QUICK, 8)):
        for name in set(forgetting.ATTACKS.values()) & {*RECOVERIES}:
            kind = RECOVERIES.load(name)
            method = kind(**kind.presets["world"]).changed(changes[name])
            each = getattr(method, "prompts", 1)  # what attacks prompts spends it on each of them
            assert method.evaluations()[1] == each * budget, name


def test_forgetting_shades_by_what_came_back():
    from palimpsest.metrics.rates import Rate

    cell = recipe("forgetting").cell
    assert cell(Rate(0.5, 0.31, 0.66, 36)) == "▓ +50 [+31, +66]"
    assert cell(Rate(0.0, -0.06, 0.06, 36)) == "+0 [-6, +6]"
    assert cell(None) == "–"
