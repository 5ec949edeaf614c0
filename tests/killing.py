"""What tests of killed and waiting commands share: a worker, a place to start from, its state."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from palimpsest.world.render import render

PROMPTS = """prompt,evaluation_seed,object
a parachute,1,parachute
a picture of a parachute,2,parachute
a picture of a kite,3,kite
"""
VOLATILE = {"seconds", "memory_mb", "peak_memory_mb", "gpu_memory_mb", "started", "finished"}
"""What a record says of the time and the machine, and not of the result."""
DRAW = ["--draw.steps", "1"]
SMALL = ["--prompts", "p.csv", *DRAW, "--force"]


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


def make_ground(worker: Worker) -> Path:
    """A folder with all that the commands start from."""
    place = worker.place / "ground"
    place.mkdir()
    (place / "p.csv").write_text(PROMPTS)
    erase = ["erase", "uce", "--concept", "parachute", "--preset", "world", *SMALL]
    erase += ["--judge", "world"]
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
    for name in ("kite", "church"):
        (place / "shown" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(render(name, "photo", i)).save(place / "shown" / name / f"{i}.png")
    return place


def copied(ground: Path, name: str) -> Path:
    place = ground.with_name(name.replace(" ", "-"))
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ground, place)
    return place


def state(place: Path) -> dict[str, str]:
    """What lies in a folder, by name, without what a lock or the clock leaves."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir() or name == "output.txt" or path.name.endswith(".lock"):
            continue
        if path.name.startswith("again-"):  # holds the times of files
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
