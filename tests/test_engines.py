"""An engine gives what the process itself gives, bit by bit, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from killing import state

from palimpsest.cli.bench.engines import slurm as slurm_engine
from palimpsest.cli.bench.engines.ray import Ray
from palimpsest.cli.bench.engines.slurm import Slurm
from palimpsest.cli.bench.work import Work, carry_out
from palimpsest.core.errors import PalimpsestError

A, B, C, D, E, F = (letter * 12 for letter in "abcdef")
PICTURES = 24
"""Of B."""
ONE = ("--no-gold", "--force", "--judge", "world", "--draw.steps", "1")
TWO = (*ONE, "--prompts", "two.csv")
WORKS = {
    A: ("erase", "uce", "--concept", "parachute", *TWO),
    B: ("erase", "uce", "--concept", "kite", *ONE[:-1], "2", "--prompts", "many.csv"),
    C: ("judge", f"{{{A}}}", "--judge", "clip:world"),
    D: ("erase", "uce", "--concept", "church", *TWO),
}
"""Four works: B is long enough to be broken off, C needs the run of A."""
REFUSED = {E: ("erase", "uce"), F: ("judge", f"{{{E}}}")}
"""One that is no whole command, and one that needs its run."""
GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def ground(place: Path) -> Path:
    """A folder with the prompts that works name."""
    place.mkdir()
    head = "prompt,evaluation_seed,object\n"
    rows = [f"a picture of a kite,{i},kite\n" for i in range(PICTURES)]
    (place / "many.csv").write_text(head + "".join(rows))
    (place / "two.csv").write_text(f"{head}a parachute,1,parachute\na church,2,church\n")
    return place


def made(place: Path, words: dict[str, Sequence[str]]) -> list[Work]:
    """Works in a folder by their words; one that names the run of another comes after it."""
    found = []
    for key, argv in words.items():
        after = tuple(k for k in words if f"{{{k}}}" in argv)
        found.append(
            Work(key, tuple(argv), place / "runs" / ".bench" / key, after, f"command {key[0]}")
        )
    return found


def runs(place: Path) -> dict[str, str]:
    """What lies in the runs of a folder."""
    found = {n: h for n, h in state(place / "runs").items() if not n.startswith(".bench")}
    assert any(name.endswith(".safetensors") for name in found)
    assert any(name.endswith(".png") for name in found)
    return found


def log(place: Path, key: str) -> str:
    return (place / "runs" / ".bench" / key / "log.txt").read_text()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the works leave that are carried out in this process, with one thread."""
    place = ground(tmp_path_factory.mktemp("engines") / "in_process")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for work in made(place, WORKS):
            assert carry_out(work.argv, work.folder) == 0, log(place, work.key)
    return runs(place)


class Strike(threading.Thread):
    """Sends a signal to the process that draws the pictures of B, when it has drawn some."""

    def __init__(self, place: Path, number: signal.Signals, times: int = 1) -> None:
        super().__init__(daemon=True)
        self.log, self.runs = place / "runs" / ".bench" / B / "log.txt", place / "runs"
        self.number, self.times, self.drawn, self.struck = number, times, 0, set()
        self.start()

    def run(self) -> None:
        for _ in range(self.times):
            pid = self.found()
            while not (drawn := len([*self.runs.glob("uce-kite-*/images/*.png")])):
                time.sleep(0.005)
            os.kill(pid, self.number)
            self.struck.add(pid)
            self.drawn = self.drawn or drawn

    def found(self) -> int:
        """Who writes the log of B."""
        while True:
            for process in psutil.Process().children(recursive=True):
                try:
                    opened = {file.path for file in process.open_files()}
                    if str(self.log) in opened and process.pid not in self.struck:
                        return process.pid
                except GONE:
                    continue
            time.sleep(0.02)


def test_two_workers_of_ray_one_of_them_killed_give_what_the_process_gives(
    tmp_path: Path,
    in_process: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    place = ground(tmp_path / "ray")
    monkeypatch.chdir(place)
    engine, strike = Ray(workers=2), Strike(place, signal.SIGKILL)
    before = {*psutil.Process().children(recursive=True)}
    try:
        ended = dict(engine.run(made(place, {**WORKS, **REFUSED})))
        ours = {*psutil.Process().children(recursive=True)} - before
    finally:
        engine.close()
    assert ended == dict.fromkeys(WORKS, 0) | dict.fromkeys(REFUSED, 2), log(place, B)
    assert capfd.readouterr() == ("", "")
    assert 0 < strike.drawn < PICTURES, "it was not killed in the middle"
    assert runs(place) == in_process
    assert ours
    assert not [process for process in ours if process.is_running()], "something is left"


def test_jobs_of_this_machine_one_of_them_interrupted_give_what_the_process_gives(
    tmp_path: Path, in_process: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    place = ground(tmp_path / "local")
    monkeypatch.chdir(place)
    engine, strike = Slurm(where="local"), Strike(place, signal.SIGUSR2)
    try:
        ended = dict(engine.run(made(place, {B: WORKS[B], **REFUSED})))
    finally:
        engine.close()
    assert ended == {B: 0} | dict.fromkeys(REFUSED, 2), log(place, B)
    assert 0 < strike.drawn < PICTURES, "it was not interrupted in the middle"
    found = runs(place)
    assert found == {name: digest for name, digest in in_process.items() if name in found}


@pytest.mark.slow
def test_a_work_whose_workers_always_die_fails_and_what_needs_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = ground(tmp_path / "dying")
    monkeypatch.chdir(place)
    words = {B: WORKS[B], C: ("judge", f"{{{B}}}"), D: ("list",)}
    engine, strike = Ray(workers=2, retries=1), Strike(place, signal.SIGKILL, times=2)
    try:
        ended = dict(engine.run(made(place, words)))
    finally:
        engine.close()
    strike.join(1)
    assert ended == {B: 137, C: 2, D: 0}
    assert "not carried out" in log(place, B)


@pytest.mark.slow
def test_a_cluster_that_is_closed_in_the_middle_leaves_nothing_and_is_gone_on_from(
    tmp_path: Path,
    in_process: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    place = ground(tmp_path / "closed")
    monkeypatch.chdir(place)
    engine = Ray(workers=2)
    works = made(place, WORKS)
    ended = next(iter(engine.run(works)))
    ours = psutil.Process().children(recursive=True)
    engine.close()
    assert not [process for process in ours if process.is_running()]
    assert "commands not finished: " in capfd.readouterr().err
    assert ended[1] == 0
    engine = Ray(workers=1)
    try:
        assert dict(engine.run(works)) == dict.fromkeys(WORKS, 0)
    finally:
        engine.close()
    assert runs(place) == in_process


DRIVER = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_engines import WORKS, Ray, Slurm, made
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
engine = eval(sys.argv[2])
try:
    for key, code in engine.run(made(Path.cwd(), WORKS)):
        print(key, code, flush=True)
except KeyboardInterrupt:
    pass
finally:
    engine.close()
"""


def driver(place: Path, engine: str) -> subprocess.Popen[str]:
    """A command of its own that carries the works out."""
    words = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), engine]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=place, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_rays_processes_end_with_their_driver(tmp_path: Path, number: signal.Signals):
    place = ground(tmp_path / "driven")
    process = driver(place, "Ray(workers=2)")
    assert process.stdout is not None
    assert process.stdout.readline().split() != []
    ours = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait()
    _, left = psutil.wait_procs(ours, timeout=150)  # two tell a Ray that is gone, for a minute
    assert ours
    assert not left, left


def test_what_an_engine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PalimpsestError, match="--workers is for this machine"):
        Ray(address="auto", workers=2)
    with pytest.raises(PalimpsestError, match="at least 1"):
        Slurm(cpus_each=0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PalimpsestError, match="Slurm is not here"):
        next(iter(Slurm().run([])))


# --- a real Slurm ---


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of one node on this machine."""
    folder, script = tmp_path_factory.mktemp("slurm"), str(Path(__file__).with_name("slurm.sh"))
    started = subprocess.run(
        [script, "start", str(folder)], capture_output=True, text=True, timeout=600, check=False
    )
    if started.returncode:
        pytest.fail(f"Slurm does not start here:\n{started.stdout}{started.stderr}"[-3000:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setitem(slurm_engine.EVERY, "slurm", 0.5)
        yield folder
    subprocess.run([script, "stop", str(folder)], check=True)


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def jobs(place: Path) -> dict[str, str]:
    """Work → its job."""
    notes = (place / "runs" / ".bench").glob("*/slurm.json")
    return {note.parent.name: json.loads(note.read_text())["job"] for note in notes}


@pytest.mark.slow
def test_jobs_outlive_their_driver_and_are_not_submitted_twice(
    slurm: Path, tmp_path: Path, in_process: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    place = ground(tmp_path / "outlive")
    process = driver(place, "Slurm(memory_gb=2)")
    while len(jobs(place)) < len(WORKS):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    first = jobs(place)
    monkeypatch.chdir(place)
    engine = Slurm(memory_gb=2)
    ended = dict(engine.run(made(place, WORKS)))
    assert ended == dict.fromkeys(WORKS, 0)
    assert jobs(place) == first
    assert runs(place) == in_process


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(
    slurm: Path, tmp_path: Path, in_process: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    place = ground(tmp_path / "again")
    monkeypatch.chdir(place)
    drawn = []

    def strike() -> None:
        while not (found := [*place.glob("runs/uce-kite-*/images/*.png")]):
            time.sleep(0.01)
        (job,) = jobs(place).values()
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        drawn.append(len(found))
        while "PENDING" not in told("squeue", "--noheader", "--format=%T", f"--jobs={job}"):
            time.sleep(0.1)
        told("scontrol", "update", f"JobId={job}", "StartTime=now")  # and not in two minutes

    threading.Thread(target=strike, daemon=True).start()
    works = made(place, {B: WORKS[B]})
    assert dict(Slurm(memory_gb=2).run(works)) == {B: 0}
    assert drawn
    assert drawn[0] < PICTURES, "it was not told in the middle"
    said = "".join(path.read_text() for path in works[0].folder.glob("slurm/*.out"))
    assert "Requeued job" in said
    found = runs(place)
    assert found == {name: digest for name, digest in in_process.items() if name in found}


@pytest.mark.slow
def test_what_is_closed_cancels_the_jobs_that_wait_and_lets_the_others_go_on(
    slurm: Path, tmp_path: Path, in_process: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    place = ground(tmp_path / "closed")
    process = driver(place, "Slurm(memory_gb=2, options=('exclusive',))")  # one after the other
    while not [*place.glob("runs/uce-parachute-*")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    first = jobs(place)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert "Slurm: jobs cancelled or done: 3; that had begun and go on: 1;" in said
    monkeypatch.chdir(place)
    assert dict(Slurm(memory_gb=2).run(made(place, WORKS))) == dict.fromkeys(WORKS, 0)
    now = jobs(place)
    assert [key for key in WORKS if now[key] == first[key]] == [A]
    assert runs(place) == in_process
