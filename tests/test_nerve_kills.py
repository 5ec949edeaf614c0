"""A command that is killed at any point and run again gives what it gives unbroken."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROMPTS = """prompt,evaluation_seed,object
a parachute,1,parachute
a picture of a parachute,2,parachute
a picture of a kite,3,kite
"""
VOLATILE = {"seconds", "memory_mb", "peak_memory_mb", "started", "finished"}
"""What a record says of the time and the machine, and not of the result."""
KILLS = int(os.environ.get("PALIMPSEST_KILLS", "50"))
"""Random kills a verb, in the slow test."""

DRAW = ["--draw.steps", "1"]
SMALL = ["--prompts", "p.csv", *DRAW, "--force"]
ESD = ["--steps", "2", "--latents.pictures", "2", "--latents.steps", "1", "--latents.batch", "1"]
BENIGN = [
    "--steps",
    "2",
    "--pictures",
    "2",
    "--unrelated",
    "2",
    "--batch",
    "1",
    "--accumulate",
    "1",
]
BENIGN += ["--data.steps", "1", "--measure.by", "none", "--subject", "erased"]
WORD = ["--steps", "2", "--drawn.pictures", "2", "--drawn.steps", "1", "--accumulate", "1"]
WORD += ["--batch", "1", "--measure.at", "0", "--measure.pictures", "1", "--subject", "erased"]
VERBS: dict[str, list[str]] = {
    "erase": ["erase", "esd", "--concept", "parachute", *ESD, *SMALL],
    "erase by a formula": ["erase", "uce", "--concept", "kite", *SMALL],
    "recover with a patch": ["recover", "benign", "RUN", *BENIGN, *DRAW],
    "recover by asking": ["recover", "concept_inversion", "RUN", *WORD, *DRAW],
    "evaluate": ["evaluate", "object", "RUN", "--concepts", "kite", "--pictures", "2", *DRAW],
    "generate": ["generate", "a kite", "a church", "--out", "pictures", *DRAW],
    "generate into": ["generate", "a kite", "--out", "taken", "--force", *DRAW],
    "draw to train on": ["generate", "a kite", "--n", "2", "--for-training", "--out", "own", *DRAW],
    "export": ["patch", "export", "RUN", "--format", "unet", "--out", "unet"],
    "merge": ["patch", "merge", "RUN", "RUN", "--out", "merged.safetensors"],
    "import": ["patch", "import", "edited/unet.safetensors", "--out", "again.safetensors"],
    "cut": ["data", "cut", "captioned", "--name", "kite", "--rest", "rest.tar"],
    "judge": ["judge", "RUN"],
    "report": ["report", "RUN", "--out", "page.html"],
}


class Worker:
    """A process that forks one for each command, and the folder where it works."""

    def __init__(self, place: Path) -> None:
        self.place = place
        script = Path(__file__).with_name("kills.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PALIMPSEST_RUNS": ""},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, words: list[str], cwd: Path, spare: list[str] | None = None, **more) -> dict:
        assert self.process.stdin is not None
        order = {"words": words, "cwd": str(cwd), "spare": spare, "seconds": None, **more}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def whole(self, words: list[str], cwd: Path) -> int:
        """Carry a command out unbroken."""
        return self.ask(words, cwd, None)["code"]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("kills"))
    yield worker
    worker.process.kill()


@pytest.fixture(scope="module")
def ground(worker: Worker) -> Path:
    """A folder with all that the commands start from."""
    place = worker.place / "ground"
    place.mkdir()
    (place / "p.csv").write_text(PROMPTS)
    erase = ["erase", "uce", "--concept", "parachute", "--preset", "world", *SMALL]
    assert worker.whole(erase, place) == 0, (place / "output.txt").read_text()
    (run,) = (place / "runs").glob("uce-*")
    run = str(run.relative_to(place))
    for words in (
        ["patch", "export", run, "--format", "unet", "--out", "edited"],
        ["generate", "a kite", "a church", "--for-training", "--out", "captioned", *DRAW],
        ["generate", "a church", "--out", "taken", *DRAW],
    ):
        assert worker.whole(words, place) == 0, (place / "output.txt").read_text()
    (place / "taken" / "mine.txt").write_text("a person's own")
    (place / "output.txt").unlink()
    return place


def copied(ground: Path, name: str) -> Path:
    place = ground.with_name(name.replace(" ", "-"))
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ground, place)
    return place


def words_of(verb: str, place: Path) -> list[str]:
    (run,) = (place / "runs").glob("uce-parachute-????????")
    return [str(run.relative_to(place)) if word == "RUN" else word for word in VERBS[verb]]


def state(place: Path) -> dict[str, str]:
    """What lies in a folder, by name, without what a lock or the clock leaves."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir() or name == "output.txt" or path.name.endswith(".lock"):
            continue
        data = path.read_bytes()
        if path.name == "run.json":
            record = {k: v for k, v in json.loads(data).items() if k not in VOLATILE}
            data = json.dumps(record).encode()
        if path.suffix in (".html", ".tar"):
            data = b""  # a page names the time
        found[name] = hashlib.sha256(data).hexdigest()[:12]
    return found


def litter(name: str, place: Path) -> bool:
    """Whether a file outside of a run's folder is what a killed process could not take away."""
    inside = [place / parent for parent in Path(name).parents]
    return ".part" in name and not any((folder / "run.json").exists() for folder in inside)


def told(place: Path) -> str:
    text = (place / "output.txt").read_text() if (place / "output.txt").exists() else ""
    assert "Traceback" not in text, text[-3000:]
    return text[-2000:]


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_every_commit_ends_as_if_it_was_not(
    verb: str, worker: Worker, ground: Path
):
    unbroken, broken = copied(ground, f"{verb} unbroken"), copied(ground, f"{verb} broken")
    words = words_of(verb, unbroken)
    code = worker.whole(words, unbroken)
    assert code == 0, told(unbroken)
    spare: list[str] = []
    while (end := worker.ask(words, broken, spare))["code"] < 0:
        assert end["at"] is not None, end
        assert end["at"] not in spare, f"{end['at']} came again"
        spare.append(end["at"])
        half = {n: h for n, h in state(broken).items() if n in state(ground)}
        assert half.keys() == state(ground).keys(), "something that was there is gone"
    assert end["code"] == code, (spare, told(broken))
    assert spare, "it was never killed"
    ours = {n: h for n, h in state(broken).items() if not litter(n, broken)}
    assert ours == state(unbroken), spare
    told(broken)


def test_a_commit_that_tears_its_file_is_found(worker: Worker, ground: Path):
    """The control: a process that dies in the middle of a file under its own name."""
    verb = "erase by a formula"
    unbroken, broken = copied(ground, "control unbroken"), copied(ground, "control broken")
    words = words_of(verb, unbroken)
    assert worker.whole(words, unbroken) == 0, told(unbroken)
    spare: list[str] = []
    while (end := worker.ask(words, broken, spare, tear=True))["code"] < 0:
        spare.append(end["at"])
    assert end["code"] != 0 or state(broken) != state(unbroken)
    told(broken)  # and even then nobody sees a traceback


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_time_ends_as_if_it_was_not(
    verb: str, worker: Worker, ground: Path
):
    unbroken = copied(ground, f"{verb} unbroken")
    words = words_of(verb, unbroken)
    start = time.monotonic()
    assert worker.whole(words, unbroken) == 0, told(unbroken)
    length, chance = time.monotonic() - start, random.Random(verb)
    kills = 0
    while kills < KILLS:
        broken = copied(ground, f"{verb} broken")
        end = worker.ask(words, broken, seconds=chance.uniform(0, length))
        while end["code"] < 0 and kills < KILLS:
            kills += 1
            end = worker.ask(words, broken, seconds=chance.uniform(0, length))
        if end["code"] < 0:
            end = {"code": worker.whole(words, broken)}
        assert end["code"] == 0, told(broken)
        ours = {n: h for n, h in state(broken).items() if not litter(n, broken)}
        assert ours == state(unbroken)
        told(broken)
