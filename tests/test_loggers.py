"""Training rows and final numbers told to a logger: what the folder holds, and no part of it."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, fences

from palimpsest.cli import main
from palimpsest.cli.tree import Call
from palimpsest.core import registry
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import ESD
from palimpsest.methods import Number
from palimpsest.models.sampling import Sampling
from palimpsest.runs import loggers
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.loggers import Logging
from palimpsest.runs.record import Record
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


# --- boards ---


class Recorded(ModuleType):
    """A board with the calls of trackio 0.43 and W&B 0.31, which prints as trackio does."""

    def __init__(self, name: str, known: bool = True):
        super().__init__(name)
        self.told, self.known = [], known

    def init(self, *, project, name, config, resume, id="", settings=None, mode=None):
        sys.stdout.write(f"* Trackio project initialized: {project}\n")
        self.told.append(("init", project, name, config["method"], resume, id, mode))

    def log(self, metrics: dict):
        self.told.append(("log", metrics))

    def finish(self):
        sys.stdout.write("* Run finished.\n")
        self.told.append(("finish",))

    def login(self, prompt: bool = True, verify: bool = True) -> bool:
        assert (prompt, verify) == (False, False), "nobody is asked, and nothing is fetched"
        return self.known

    Settings = dict


DONE = Record(method="esd", numbers=(Number("UA", 0.9), Number("world-FID, others", math.nan, n=8)))


def tell_board(name: str, said: Any = print) -> None:
    """A run that is broken off, and goes on to its end."""
    log = Logging(loggers.logger(name), said)
    log.start("esd-1234", Record(method="esd"))
    log.row({"label": "training", "step": 1, "loss": 0.5, "drawn": "a cat"})
    log.end()
    log.start("esd-1234", Record(method="esd"))
    log.row({"step": 2, "loss": 0.25})
    log.end(DONE)


@pytest.mark.parametrize(
    ("name", "known", "way"),
    [
        ("trackio", True, ("", None)),
        ("wandb", True, ("esd-1234", None)),
        ("wandb", False, ("esd-1234", "offline")),
    ],
)
def test_a_board_is_told_figures_alone_and_stdout_is_left_alone(
    monkeypatch, capsys, name: str, known: bool, way: tuple
):
    board = Recorded(name, known)
    board.__spec__ = ModuleSpec(name, None, origin="here")
    monkeypatch.setitem(sys.modules, name, board)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    tell_board(name)
    begin = ("init", "mine" if name == "wandb" else "palimpsest", "esd-1234", "esd", "allow", *way)
    assert board.told == [
        begin,
        ("log", {"training/step": 1, "training/loss": 0.5}),
        ("finish",),
        begin,
        ("log", {"training/step": 2, "training/loss": 0.25}),
        ("log", {"UA": 0.9}),
        ("finish",),
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert "Run finished" in said.err


TOLD = """
import sys
sys.path.insert(0, {tests!r})
from test_loggers import tell_board
said = []
tell_board({name!r}, said.append)
assert not said, said
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_real_boards_keep_what_they_are_told_without_a_network(tmp_path: Path, name: str):
    own = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    code = TOLD.format(tests=str(Path(__file__).parent), name=name)
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB", "TRACKIO"))}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env=environment | own,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    if name == "trackio":
        (kept,) = tmp_path.rglob("palimpsest.db")
        with sqlite3.connect(kept) as board:
            rows = board.execute("select run_name, metrics from metrics order by id").fetchall()
        assert {run for run, _ in rows} == {"esd-1234"}
        assert [json.loads(told) for _, told in rows] == [
            {"training/step": 1, "training/loss": 0.5},
            {"training/step": 2, "training/loss": 0.25},
            {"UA": 0.9},
        ]
    else:
        kept = b"".join(p.read_bytes() for p in tmp_path.rglob("run-esd-1234.wandb"))
        for told in (b"training/loss", b"UA", b"esd"):
            assert told in kept


def test_the_command_does_not_know_of_it():
    words = ("erase", "esd", "--log", "trackio", "--concept", "cat", "--log=wandb")
    assert Call(words).command == "palimpsest erase esd --concept cat"
    assert Call(("erase", "esd", "--log")).command == "palimpsest erase esd"
