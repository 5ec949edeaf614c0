"""Training rows and final numbers told to a logger: what the folder holds, and no part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, fences

from palimpsest.cli import main
from palimpsest.cli.tree import Call
from palimpsest.core import registry
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import ESD
from palimpsest.models.sampling import Sampling
from palimpsest.runs import loggers
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel
from palimpsest.world import suite

SHORT = {"steps": 3, "latents.batch": 1, "latents.pictures": 2, "latents.steps": 2}
PROMPTS = [suite.pair(name, "photo", 188) for name in ("parachute", "church")]


@dataclass
class Notes:
    """A logger of another package."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    fails_at: str = ""

    def _note(self, what: str, value: Any) -> None:
        if what == self.fails_at:
            raise OSError("no network")
        self.told.append((what, value))

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        self._note("start", (run, dict(about)))

    def row(self, values: Mapping[str, Any]) -> None:
        self._note("row", dict(values))

    def end(self, numbers: Mapping[str, float]) -> None:
        self._note("end", dict(numbers))

    def of(self, what: str) -> list[Any]:
        return [value for name, value in self.told if name == what]


def erase(root: Path, model, judge, logger: Any = None, tell: Any = print, **changes: Any) -> Run:
    quick = model.with_sampling(Sampling(steps=2, guidance=3.0, batch=2))
    runner = Runner(root, quick, Panel(judge), tell=tell, logger=logger)
    method = ESD(**ESD.presets["world"]).changed(SHORT | changes)
    return runner.run(suite.concept("parachute", "balloon"), method, On(PROMPTS), force=True)


def test_a_logger_is_told_what_the_folder_holds_and_is_no_part_of_it(tmp_path, model, judge):
    notes = Notes()
    told, silent = (erase(tmp_path / r, model, judge, n) for r, n in (("a", notes), ("b", None)))
    assert told.name == silent.name
    assert told.path("patch.safetensors").stat().st_size > 0
    assert notes.of("row") == told.rows("log.jsonl") != []
    ((run, about),) = notes.of("start")
    assert (run, about["method"], about["arguments"]["steps"]) == (told.name, "esd", 3)
    (numbers,) = notes.of("end")
    record = told.record()
    assert numbers == {n.name: n.value for n in record.numbers if n.value == n.value}
    assert "UA" in numbers
    assert [what for what, _ in notes.told][:: len(notes.told) - 1] == ["start", "end"]
    erase(tmp_path / "a", model, judge, notes)
    assert len(notes.of("start")) == 1, "a finished run has nothing more to tell"


@pytest.mark.parametrize("when", ["start", "row", "end"])
def test_a_logger_that_fails_stops_no_run(tmp_path, model, judge, when: str):
    notes, said = Notes(fails_at=when), []
    run = erase(tmp_path, model, judge, notes, said.append)
    assert run.done
    assert len(run.rows("log.jsonl")) >= 3
    (warning,) = [s for s in said if "logger" in s]
    assert "no network" in warning
    assert len(notes.of("end")) == (when == "row"), "what was begun there is closed"


def test_a_run_that_breaks_off_is_closed_without_numbers(tmp_path, model, judge, monkeypatch):
    notes = Notes()
    monkeypatch.setattr(Runner, "_close", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        erase(tmp_path, model, judge, notes)
    assert notes.of("end") == [{}]


def test_loggers_are_found_by_entry_point(monkeypatch, capsys):
    entry = EntryPoint("notes", f"{__name__}:Notes", "palimpsest.loggers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] * (group == entry.group))
    assert isinstance(loggers.logger("notes"), Notes)
    with pytest.raises(PalimpsestError, match=r"no logger 'note'; did you mean 'notes'\?"):
        loggers.logger("note")
    assert main(["erase", "esd", "--concept", "parachute", "--log", "nots"]) == 2
    assert "did you mean 'notes'" in capsys.readouterr().err


def test_the_logger_of_the_docs_prints_what_a_run_tells(tmp_path, model, judge, capsys):
    source = next(s for s in fences(ROOT / "docs" / "scripts.md", "python") if "Lines" in s)
    exec(source, own := {})
    run = erase(tmp_path, model, judge, own["Lines"]())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"begin {run.name} esd"
    assert lines[1:-1] == [str(row) for row in run.rows("log.jsonl")]
    assert lines[-1].startswith("end {'UA': ")


def test_a_board_that_is_not_installed_is_refused_before_anything_is_spent(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    words = ["erase", "esd", "--concept", "parachute", "--log", "wandb"]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 2
    assert "pip install 'palimpsest-ml[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_command_does_not_know_of_it():
    words = ("erase", "esd", "--log", "trackio", "--concept", "cat", "--log=wandb")
    assert Call(words).command == "palimpsest erase esd --concept cat"
    assert Call(("erase", "esd", "--log")).command == "palimpsest erase esd"
