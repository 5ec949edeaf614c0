"""A command that is killed at any point and run again gives what it gives unbroken."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from killing import DRAW, SMALL, Worker, copied, litter, state, told

KILLS = int(os.environ.get("PALIMPSEST_KILLS", "50"))
"""Random kills a verb, in the slow test."""

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
CLIP = ["--sets.pictures", "4", "--sets.retain-pictures", "8", "--sets.per-class", "1"]
CLIP += ["--batch", "8", "--tries", "1", "--start", "1e-6"]
WORD = ["--steps", "2", "--drawn.pictures", "2", "--drawn.steps", "1", "--accumulate", "1"]
WORD += ["--batch", "1", "--measure.at", "0", "--measure.pictures", "1", "--subject", "erased"]
ONE = ["--judge", "world"]
AUDIT = [*ONE, "--recoveries", "--wordings", "1", "--out", "audit.html", "--force"]
VERBS: dict[str, list[str]] = {
    "erase": ["erase", "esd", "--concept", "parachute", *ESD, *SMALL],
    "erase by a formula": ["erase", "uce", "--concept", "kite", *SMALL, *ONE],
    "erase from a CLIP": [
        "erase",
        "slug",
        "--model",
        "clip:world",
        "--concept",
        "parachute",
        *CLIP,
    ],
    "recover with a patch": ["recover", "benign", "RUN", *BENIGN, *DRAW],
    "recover by asking": ["recover", "concept_inversion", "RUN", *WORD, *DRAW],
    "evaluate": ["evaluate", "object", "RUN", "--concepts", "kite", "--pictures", "2", *DRAW, *ONE],
    "generate": ["generate", "a kite", "a church", "--out", "pictures", *DRAW],
    "generate into": ["generate", "a kite", "--out", "taken", "--force", *DRAW],
    "draw to train on": ["generate", "a kite", "--n", "2", "--for-training", "--out", "own", *DRAW],
    "export": ["patch", "export", "RUN", "--format", "unet", "--out", "unet"],
    "merge": ["patch", "merge", "RUN", "RUN", "--out", "merged.safetensors"],
    "import": ["patch", "import", "edited/unet.safetensors", "--out", "again.safetensors"],
    "audit": ["audit", "EDITED", "--concept", "parachute", *AUDIT, "--prompts", "p.csv", *DRAW],
    "cut": ["data", "cut", "captioned", "--name", "kite", "--rest", "rest.tar"],
    "judge": ["judge", "RUN", "--judge", "vlm:world"],
    "save the world": ["world", "save", "mine", "--pictures", "1"],
    "train a judge": ["train-judge", "shown", "--out", "judged", "--size", "16", "--epochs", "2"],
    "report": ["report", "RUN", "--out", "page.html"],
    "report as a site": ["report", "RUN", "--site", "site"],
}


def words_of(verb: str, place: Path) -> list[str]:
    (run,) = (place / "runs").glob("uce-parachute-????????")
    # a run of what was published is named by the place of its file
    told = {"RUN": str(run.relative_to(place)), "EDITED": str(place.with_name("ground") / "edited")}
    return [told.get(word, word) for word in VERBS[verb]]


def own(place: Path) -> dict[str, str]:
    """The state of a folder without what a killed process could not take away."""
    return {n: h for n, h in state(place).items() if not litter(n, place)}


LONG = ("erase by a formula", "erase from a CLIP", "recover by asking", "audit")
"""In the suite a verb like each of them stands for it."""
SHORT = [verb for verb in VERBS if verb not in LONG]


@pytest.mark.parametrize(
    ("verb", "every"),
    [*((v, 4) for v in SHORT), *(pytest.param(v, 1, marks=pytest.mark.slow) for v in VERBS)],
)
def test_a_command_killed_at_every_commit_ends_as_if_it_was_not(
    verb: str, every: int, worker: Worker, ground: Path
):
    """In the suite at the first commit and every fourth after it."""
    unbroken, broken = copied(ground, f"{verb} unbroken"), copied(ground, f"{verb} broken")
    words = words_of(verb, unbroken)
    code = worker.whole(words, unbroken)
    assert code in (0, 3), told(unbroken)  # 3: a search fell short, and its best is kept
    spare: list[str] = []
    while (end := worker.ask(words, broken, spare, skip=every - 1 if spare else 0))["code"] < 0:
        assert end["at"], end
        assert not {*end["at"]} & {*spare}, f"{end['at']} came again"
        spare += end["at"]
        half = {n: h for n, h in state(broken).items() if n in state(ground)}
        assert half.keys() == state(ground).keys(), "something that was there is gone"
    assert end["code"] == code, (spare, told(broken))
    assert spare, "it was never killed"
    assert own(broken) == state(unbroken), spare
    told(broken)


def test_a_commit_that_tears_its_file_is_found(worker: Worker, ground: Path):
    """The control: a process that dies in the middle of a file under its own name."""
    verb = "erase by a formula"
    unbroken, broken = copied(ground, "control unbroken"), copied(ground, "control broken")
    words = words_of(verb, unbroken)
    assert worker.whole(words, unbroken) == 0, told(unbroken)
    spare: list[str] = []
    while (end := worker.ask(words, broken, spare, tear=True))["code"] < 0:
        spare += end["at"]
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
    code = worker.whole(words, unbroken)
    assert code in (0, 3), told(unbroken)
    length, chance = time.monotonic() - start, random.Random(verb)
    kills = 0
    while kills < KILLS:
        broken = copied(ground, f"{verb} broken")
        end = worker.ask(words, broken, seconds=chance.uniform(0, length))
        while end["code"] < 0 and kills < KILLS and own(broken) != state(unbroken):
            kills += 1
            end = worker.ask(words, broken, seconds=chance.uniform(0, length))
        kills += 1
        if end["code"] < 0 and own(broken) != state(unbroken):
            end = {"code": worker.whole(words, broken)}
        # killed behind its last commit it has done all, and again it would refuse what it made
        assert end["code"] == code or own(broken) == state(unbroken), told(broken)
        assert own(broken) == state(unbroken)
        told(broken)
