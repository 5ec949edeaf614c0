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


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def test_shards_are_the_whole(tmp_path: Path, capsys):
    texts = [f"a {name} image in photo style." for name in ("cat", "boat", "kite")]
    words = ["generate", *texts, "--n", "2", *QUICK]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    whole = files(tmp_path / "whole")
    assert len(whole) == 6
    parts = []
    for i in (1, 2):
        out = tmp_path / f"part {i}"
        assert main([*words, "--shard", f"{i}/2", "--out", str(out)]) == 0
        parts.append(files(out))
        rows = (out / "prompts.csv").read_text().count("photo style")
        assert (len(parts[-1]), rows) == ((4, 2), (2, 1))[i - 1]
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0] | parts[1] == whole
    capsys.readouterr()
    for word, told in (("3/2", "name a part"), ("1/9", "only 3 prompts"), ("half", "name a part")):
        assert main([*words, "--shard", word, "--out", str(tmp_path / "no")]) == 2
        assert told in capsys.readouterr().err
    assert main([*words, "--shard", "1/2", "--for-training", "--out", str(tmp_path / "no")]) == 2
    assert "drawn whole" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_search_without_a_judge_says_how_to_name_one(tmp_path: Path, capsys):
    concept = ["--concept", "parachute", "--keep", "a cat", "--runs", str(tmp_path / "runs")]
    assert main(["erase", "slug", "--model", MODEL, *concept, *QUICK]) == 2
    assert "name one with --judge" in capsys.readouterr().err
