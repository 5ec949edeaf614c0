"""One run in several processes: what they do together is what one would do alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from pages import ROOT, fences

from palimpsest.cli import main
from palimpsest.core.processes import Alone
from palimpsest.erase.esd import ESD
from palimpsest.methods import Context
from palimpsest.runs.folder import Run
from palimpsest.world import suite

N = 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={N}"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
PICTURES = 10
"""More than are drawn at once."""
STEPS = 3
DRAW = ["--prompts", "p.csv", "--draw.steps", "1", "--draw.batch", "4", "--judge", "none"]
SMALL = ["--steps", str(STEPS), "--latents.pictures", "10", "--latents.steps", "2", *DRAW]


def started(words: Sequence[str], place: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=place, env=ENV, stdout=pipe, stderr=pipe, text=True)


def carried_out(words: Sequence[str], place: Path) -> subprocess.CompletedProcess[str]:
    how: Any = {"cwd": place, "env": ENV, "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run(words, check=False, **how)


class One(Alone):
    """One of several processes, left by the others: what it computes is its own part."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, N


# --- the training loop ---


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes came to."""
    place = tmp_path_factory.mktemp("several")
    done = carried_out([*TORCHRUN, several.__file__, str(place)], place)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(N)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def but_kept(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p for name, p in found.items() if name != "kept"}


def test_a_step_is_that_of_the_mean_of_all_losses(both):
    alone, trace = several.trained(Context(seed=3), replace(several.RECIPE, accumulate=N))
    assert same(but_kept(both[0]["whole"]), but_kept(alone))
    assert both[0]["losses"] == trace.losses
    other, _ = several.trained(Context(seed=3))  # of the first process's losses alone
    assert not same(but_kept(other), but_kept(alone))


def test_all_processes_have_the_same_parameters(both):
    assert same(both[0]["whole"], both[1]["whole"])
    assert both[0]["losses"] == both[1]["losses"]


def test_what_is_not_trained_is_the_mean(both):
    expected = 0.0
    for loss in both[0]["losses"]:
        expected = 0.9 * expected + 0.1 * loss
    assert float(both[0]["whole"]["kept"]) == pytest.approx(expected, rel=1e-6)


def test_a_resumed_training_equals_an_unbroken_one(both):
    for found in both:
        assert same(found["resumed"], found["whole"])
        assert found["losses again"] == found["losses"]


def test_the_first_process_decides_when_to_stop(both):
    assert [found["stopped"] for found in both] == [2, 2]
    assert [found["notes"]["seen by"] for found in both] == [0, 0]


def test_parts_are_joined_in_the_order_of_the_items(both):
    assert [found["joined"] for found in both] == [[0, 10, 20, 30, 40]] * N


def test_parameters_that_come_apart_are_refused(both):
    assert both[0]["refused"] == ""
    assert "no longer what process 0 trains" in both[1]["refused"]


# --- a command ---


def example() -> list[str]:
    """The command of docs/clusters.md that runs on CPUs."""
    (line,) = [
        line
        for body in fences(ROOT / "docs" / "clusters.md", "bash")
        for line in body.splitlines()
        if line.startswith("accelerate launch --multi_gpu --num_processes 2 ")
    ]
    return [str(Path(sys.executable).with_name("accelerate")), *shlex.split(line)[1:]]


def with_prompts(place: Path) -> Path:
    rows = [f"a picture of a {('kite', 'parachute')[i % 2]},{i}" for i in range(PICTURES)]
    (place / "p.csv").write_text("\n".join(["prompt,evaluation_seed", *rows]) + "\n")
    return place


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an erasure that two processes made."""
    place = with_prompts(tmp_path_factory.mktemp("erased"))
    done = carried_out([*example(), *SMALL], place)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert sum(line.startswith("runs/esd-parachute-") for line in said) == 1
    return place


@pytest.fixture
def alone(erased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the same pictures of the unedited model, drawn by one process."""
    place = with_prompts(tmp_path)
    monkeypatch.chdir(place)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["erase", "uce", "--concept", "parachute", *DRAW]) == 0
    yield place
    torch.set_num_threads(threads)


def pictures(place: Path, name: str) -> dict[str, bytes]:
    (run,) = (place / "runs").glob(f"{name}-*")
    return {path.name: path.read_bytes() for path in run.glob("images/*.png")}


def test_the_pictures_of_two_processes_are_those_of_one(erased: Path, alone: Path):
    drawn = pictures(erased, "original")
    assert len(drawn) == PICTURES
    assert drawn == pictures(alone, "original")
    edited = pictures(erased, "esd-parachute")
    assert edited.keys() == drawn.keys()
    assert edited != drawn


def test_a_record_says_how_many_processes_trained(erased: Path):
    (folder,) = (erased / "runs").glob("esd-parachute-*")
    record = Run.open(folder).record()
    assert record.processes == N
    assert f"--num_processes {N}" in record.command
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    (original,) = (erased / "runs").glob("original-*")
    assert Run.open(original).record().processes == 1


def test_a_method_takes_the_mean_of_both_processes_losses(erased: Path, model):
    (folder,) = (erased / "runs").glob("esd-parachute-*")
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"]
    settings = {"steps": 1, "latents.pictures": 10, "latents.steps": 2}
    method, losses = ESD(**ESD.presets["world"]).changed(settings), []
    for rank in range(N):
        own = Context(group=One(rank), log=lambda row: losses.append(row["loss"]))
        method(model, suite.concept("parachute"), context=own)
    assert losses[0] != losses[1]
    assert sum(losses) / N == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on_and_equals_an_unbroken_one(
    erased: Path, tmp_path: Path
):
    place = with_prompts(tmp_path)
    run = started([*TORCHRUN, "-m", "palimpsest", *example()[6:], *SMALL], place)
    end = time.monotonic() + 120
    while time.monotonic() < end and not [*place.glob("runs/original-*/images/*.png")]:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGTERM)
    run.communicate(timeout=120)
    assert not [*place.glob("runs/esd-*/patch.safetensors")]
    done = carried_out([*TORCHRUN, "-m", "palimpsest", *example()[6:], *SMALL], place)
    assert done.returncode == 0, done.stderr[-3000:]
    assert pictures(place, "esd-parachute") == pictures(erased, "esd-parachute")


@pytest.mark.slow
def test_a_refusal_is_said_once(tmp_path: Path):
    words = ["erase", "esd", "--concept", "parachute", "--steps", "0"]
    done = carried_out([*TORCHRUN, "-m", "palimpsest", *words], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("palimpsest: ") == 1
    assert "exitcode  : 2" in done.stderr
