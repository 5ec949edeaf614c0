"""A model of one's own, of which nothing is known: the world's under another name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from palimpsest.cli import main
from palimpsest.runs.folder import Run
from palimpsest.world import assets

MODEL = str(assets.stable_diffusion())  # a folder of Diffusers like any other
QUICK = ("--draw.steps", "2")


@pytest.fixture
def erased(tmp_path: Path) -> Run:
    """An erasing run that nobody judged."""
    rows = [("prompt", "seed", "object")]
    rows += [(f"a {name} image in photo style.", 188, name) for name in ("parachute", "cat")]
    with (tmp_path / "asked.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    words = ["--model", MODEL, "--prompts", str(tmp_path / "asked.csv"), *QUICK]
    concept = ["--concept", "parachute", "--anchor", "balloon", "--runs", str(tmp_path / "runs")]
    assert main(["erase", "uce", *concept, *words]) == 0
    (folder,) = (tmp_path / "runs").glob("uce-*")
    return Run.open(folder)


def test_a_recovery_runs_without_a_judge_and_knows_no_gold(erased: Run, capsys):
    small = ["--prompts", "1", "--tokens", "4", "--generations", "2", "--population", "8"]
    words = ["recover", "ring_a_bell", str(erased.folder), *small]
    assert main([*words, "--dry-run"]) == 0
    assert "2 times: on erased, unedited" in capsys.readouterr().out
    assert main(words) == 0
    said = capsys.readouterr()
    assert "no judge looks at the pictures" in said.err
    assert "gold" not in said.out
    found = [Run.open(folder).record() for folder in erased.folder.parent.glob("ring_a_bell-*")]
    assert {(record.subject, record.gold) for record in found} == {
        (erased.name, None),
        (None, None),
    }
    assert main([*words, "--subject", "gold"]) == 2
    assert "no gold model" in capsys.readouterr().err
