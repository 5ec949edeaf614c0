"""One run in several processes: what they do together is what one would do alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from pages import ROOT, fences

from palimpsest.cli import main
from palimpsest.core import processes
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.processes import ALONE, Alone
from palimpsest.erase.esd import ESD
from palimpsest.methods import Context
from palimpsest.models import devices
from palimpsest.models.devices import usable
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.world import suite

N = 2
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu"]
LAUNCH += ["--num_processes", str(N)]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
PICTURES = 10
"""More than are drawn at once."""
DRAW = ["--prompts", "p.csv", "--draw.steps", "1", "--draw.batch", "4", "--judge", "none"]
SMALL = ["--latents.pictures", "10", "--latents.steps", "2", *DRAW]


def started(
    words: Sequence[str], place: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        words, cwd=place, env={**ENV, **(env or {})}, start_new_session=True, **how
    )


def carried_out(words: Sequence[str], place: Path) -> subprocess.CompletedProcess[str]:
    how: Any = {"cwd": place, "env": ENV, "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run(words, check=False, **how)


class One(Alone):
    """One of several processes, left by the others: what it computes is its own part."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, N


# --- the training loop ---


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes came to."""
    place, words = tmp_path_factory.mktemp("several"), [sys.executable, several.__file__]
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    each = [
        started([*words, str(place)], place, told | {"RANK": str(rank), "WORLD_SIZE": str(N)})
        for rank in range(N)
    ]
    for process in each:
        said = process.communicate(timeout=600)
        assert process.returncode == 0, said[1][-3000:]
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


def test_the_end_of_another_process_is_said_once(both):
    assert "another process of this run ended" in both[0]["lost"]
    assert both[0]["speaks"] == [True, False]


def test_a_process_that_does_not_hear_ctrl_c_goes_on():
    heard = []
    context = Context(log=lambda row: heard.append(os.kill(os.getpid(), signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite's may not hear it
    try:
        with pytest.raises(KeyboardInterrupt):
            several.trained(context)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        several.trained(context)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(heard) == 1 + several.STEPS


# --- a command ---


def example() -> list[str]:
    """The command of docs/clusters.md that runs on CPUs."""
    (line,) = [
        line
        for body in fences(ROOT / "docs" / "clusters.md", "bash")
        for line in body.splitlines()
        if line.startswith("accelerate launch --multi_gpu --num_processes 2 ")
    ]
    return [LAUNCH[0], *shlex.split(line)[1:]]


def with_prompts(place: Path) -> Path:
    rows = [f"a picture of a {('kite', 'parachute')[i % 2]},{i}" for i in range(PICTURES)]
    (place / "p.csv").write_text("\n".join(["prompt,evaluation_seed", *rows]) + "\n")
    return place


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an erasure that two processes made."""
    place = with_prompts(tmp_path_factory.mktemp("erased"))
    done = carried_out([*example(), "--steps", "3", *SMALL], place)
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


def patch(place: Path) -> Patch:
    (run,) = (place / "runs").glob("esd-parachute-*")
    return Patch.load(run / "patch.safetensors")


def test_what_does_not_train_is_the_same_run_however_many_there_are(
    alone: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {path.name for path in (alone / "runs").iterdir()}
    more = ["--preset", "published", "--steps", "1", "--latents.steps", "2"]
    for words in (["uce"], ["esd", *more]):
        monkeypatch.setattr(processes, "_here", One(0))  # the first process, if others came
        assert main(["erase", words[0], "--concept", "parachute", *words[1:], *DRAW]) == 0
    new = {path.name for path in (alone / "runs").glob("[a-z]*")} - before
    assert [name.split("-")[0] for name in new] == ["esd"]
    monkeypatch.setattr(processes, "_here", ALONE)
    assert main(["erase", "esd", "--concept", "parachute", *more, *DRAW]) == 0
    runs = map(Run, (alone / "runs").glob("esd-*"))
    assert {(run.record().processes, run.record().preset) for run in runs} == {
        (1, "published"),
        (N, ""),
    }


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_here", second := One(1))
    second.local_rank, second.local_size = 1, N
    assert usable("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: N)
    assert devices._own("cuda") == devices._own("cuda:1") == "cuda:1"
    with pytest.raises(PalimpsestError, match="card of its own"):
        usable("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PalimpsestError, match="needs a card of its own, and it has 1"):
        usable("cuda")


@pytest.mark.slow
def test_a_broken_run_of_two_processes_goes_on_and_equals_an_unbroken_one(tmp_path: Path):
    words = [*example(), "--steps", "20", *SMALL]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for place in (broken, whole):
        place.mkdir()
        with_prompts(place)
    run, until = started(words, broken), time.monotonic() + 600
    while time.monotonic() < until and run.poll() is None:
        if any(path.read_text().count("\n") > 4 for path in broken.glob("runs/*/log.jsonl")):
            break
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=600)[1]
    assert said.count("palimpsest: stopped; run the same command to go on") == 1
    assert [*broken.glob("runs/esd-*/checkpoints/erasing.checkpoint")]
    assert not [*broken.glob("runs/esd-*/patch.safetensors")]
    for place in (broken, whole):
        done = carried_out(words, place)
        assert done.returncode == 0, done.stderr[-3000:]
    assert patch(broken).digest() == patch(whole).digest()
    assert pictures(broken, "esd-parachute") == pictures(whole, "esd-parachute")


@pytest.mark.slow
def test_all_processes_see_what_the_judge_of_the_first_says(erased: Path):
    (run,) = (erased / "runs").glob("esd-parachute-*")
    words = ["recover", "concept_inversion", f"runs/{run.name}", "--judge", "world"]
    words += ["--steps", "4", "--batch", "2", "--drawn.pictures", "6", "--drawn.steps", "2"]
    words += ["--subject", "erased", "--measure.at", "0", "4", "--measure.pictures", "6"]
    done = carried_out([*LAUNCH, "-m", "palimpsest", *words], erased)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (erased / "runs").glob("concept_inversion-parachute-on-esd-*")
    record = Run.open(found).record()
    assert [point.step for point in record.curve] == [0, 4]
    assert [point.evaluations for point in record.curve] == [0, 4 * 2 * N]
    assert record.evaluations == 4 * 2 * N


@pytest.mark.slow
def test_a_refusal_is_said_once(tmp_path: Path):
    words = ["erase", "esd", "--concept", "parachute", "--steps", "0"]
    done = carried_out([*LAUNCH, "-m", "palimpsest", *words], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("palimpsest: ") == 1
    assert "exitcode  : 2" in done.stderr
