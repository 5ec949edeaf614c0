"""Entries of the leaderboard: every file of the folder fits the schema and agrees with itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from palimpsest.core.concepts import Concept
from palimpsest.judge.references import Entry
from palimpsest.report.results import Row
from palimpsest.report.results.entry import entry
from palimpsest.runs.folder import Run
from palimpsest.runs.record import ModelEntry, Record

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "leaderboard.schema.json").read_text(encoding="utf-8"))
ENTRIES = sorted((ROOT / "leaderboard").glob("*.json"))
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def faults(page: Any) -> list[str]:
    """What is wrong with an entry, in words; empty if nothing is."""
    found = [f"{error.json_path}: {error.message}" for error in CHECK.iter_errors(page)]
    if found:
        return found
    names = {judge["name"] for judge in page["judges"]}
    for result in page["results"]:
        runs = {run["seed"] for run in result["runs"] if "seed" in run}
        if runs != set(result["seeds"]):
            found.append(f"seeds {result['seeds']} are not those of the runs")
        for number in result["numbers"]:
            told = number["measure"]
            low, high = number.get("low", number["value"]), number.get("high", number["value"])
            if not low - 1e-9 <= number["value"] <= high + 1e-9:
                found.append(f"{told}: outside its interval")
            if number["seeds"] > len(result["runs"]):
                found.append(f"{told}: more seeds than runs")
            if not set(filter(None, number.get("judge", "").split("; "))) <= names:
                found.append(f"{told}: judged by somebody who is not named")
    return found


def test_every_entry_fits():
    wrong = {path.name: faults(json.loads(path.read_text(encoding="utf-8"))) for path in ENTRIES}
    assert {name: found for name, found in wrong.items() if found} == {}
    others = [p.name for p in (ROOT / "leaderboard").iterdir() if p not in ENTRIES]
    assert others == ["README.md"], "entries end in .json"


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """An entry of two seeds."""
    spec, model = "world judge v1, 64 px", ModelEntry("world", "abc", "DDIM 20 steps", "float32")
    found = []
    for seed in (0, 1):
        run = Run(tmp_path / f"esd-{seed}")
        run.write(
            Record(
                kind="erase",
                status="done",
                method="esd",
                title="ESD",
                seed=seed,
                concepts=(Concept("cat"),),
                model=model,
                judge=Entry("world judge", "1", 64, ref="world"),
                command="palimpsest erase esd",
            )
        )
        common = {"kind": "erase", "method": "esd", "title": "ESD", "on": "erased", "unit": "%"}
        common |= {"settings": "01234567", "variant": "89abcdef", "identity": "abc", "n": 40}
        value = {"value": 0.5 + seed / 10, "low": 0.4, "high": 0.7, "measure": "UA", "spec": spec}
        about = {"run": run.name, "folder": str(run.folder), "seed": seed, "judge": "world judge"}
        found.append(Row(**common, **value, **about, model="world", concepts="cat"))
    return json.loads(json.dumps(entry(found, "us")))


def test_what_the_command_writes_fits(page: dict[str, Any]):
    assert faults(page) == []
    assert page["results"][0]["seeds"] == [0, 1]


BROKEN = {
    "no author": lambda p: p.update(by=""),
    "a value in per cent": lambda p: p["results"][0]["numbers"][0].update(value=55.0, high=70.0),
    "an interval beside its value": lambda p: p["results"][0]["numbers"][0].update(low=0.6),
    "half an interval": lambda p: p["results"][0]["numbers"][0].pop("low"),
    "a seed without a run": lambda p: p["results"][0].update(seeds=[0, 1, 2]),
    "more seeds than runs": lambda p: p["results"][0]["numbers"][0].update(seeds=5),
    "a judge that is not named": lambda p: p["results"][0]["numbers"][0].update(judge="me"),
    "a field of its own": lambda p: p.update(rank=1),
    "no command": lambda p: p["results"][0]["runs"][0].pop("command"),
    "a patch that is no hash": lambda p: p["results"][0]["runs"][0].update(patch="abc"),
    "no time": lambda p: p.update(made="yesterday"),
    "another format": lambda p: p.update(format=2),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_entry_that_is_wrong_is_found(page: dict[str, Any], how: str):
    wrong = copy.deepcopy(page)
    BROKEN[how](wrong)
    assert faults(wrong)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
