"""Two processes, a full disk, and what others put in our way."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import DRAW, SMALL, Worker, copied, state, told

from palimpsest.core.locks import folder_lock, output_lock

AT_WORK = "another process is at work on it; waiting until it is done"


def in_background(worker: Worker, words: list[str], place: Path) -> tuple[threading.Thread, list]:
    ends: list[dict] = []
    thread = threading.Thread(target=lambda: ends.append(worker.ask(words, place)))
    thread.start()
    return thread, ends


def wait_for(said: str, place: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (place / "output.txt").exists() and said in (place / "output.txt").read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody said {said!r}: {told(place)}")


def nobody(sentence: str) -> None:
    raise AssertionError(sentence)


def test_a_run_that_another_process_holds_is_waited_for(worker: Worker, ground: Path):
    alone, place = copied(ground, "race alone"), copied(ground, "race run")
    words = ["erase", "uce", "--concept", "kite", *SMALL]
    assert worker.whole(words, alone) == 0, told(alone)
    assert AT_WORK not in told(alone)
    (run,) = (alone / "runs").glob("uce-kite-*")
    with folder_lock(place / "runs" / run.name, nobody):
        thread, ends = in_background(worker, words, place)
        wait_for(AT_WORK, place)
        assert not (place / "runs" / run.name).exists(), "it did not wait"
    thread.join()
    assert ends[0]["code"] == 0, told(place)
    assert state(place) == state(alone)


def test_two_processes_with_one_command_give_what_one_gives(worker: Worker, ground: Path):
    alone, place = copied(ground, "race one"), copied(ground, "race two")
    words = ["erase", "uce", "--concept", "kite", *SMALL]
    assert worker.whole(words, alone) == 0, told(alone)
    second = Worker(place)
    try:
        threads = [in_background(each, words, place) for each in (worker, second)]
        for thread, _ in threads:
            thread.join()
        assert [ends[0]["code"] for _, ends in threads] == [0, 0], told(place)
    finally:
        second.process.kill()
    assert state(place) == state(alone)


@pytest.mark.parametrize(
    "words",
    [
        ["patch", "merge", "RUN", "RUN", "--out", "out"],
        ["generate", "a kite", "--out", "out", *DRAW],
    ],
    ids=["a file", "a folder"],
)
def test_an_output_that_another_process_writes_is_waited_for_and_not_written_over(
    words: list[str], worker: Worker, ground: Path
):
    place = copied(ground, "race output")
    (run,) = (place / "runs").glob("uce-*")
    words = [str(run.relative_to(place)) if word == "RUN" else word for word in words]
    out = place / "out"
    with output_lock(out, nobody):
        thread, ends = in_background(worker, words, place)
        wait_for(AT_WORK, place)
        if words[0] == "patch":
            out.write_text("the other's")
        else:
            out.mkdir()
            (out / "kept.txt").write_text("the other's")
    thread.join()
    assert ends[0]["code"] == 2
    assert "--force" in told(place)
    kept = out if out.is_file() else out / "kept.txt"
    assert kept.read_text() == "the other's"


# --- what lies in the way ---


def test_what_looks_like_a_temporary_file_of_ours_is_left_alone(worker: Worker, ground: Path):
    place = copied(ground, "in the way")
    for name in ("pictures.part", ".pictures.part"):
        (place / name).mkdir()
        (place / name / "mine.txt").write_text("a person's own")
    target = place / "target.txt"
    target.write_text("elsewhere")
    (place / "merged.safetensors.part").symlink_to(target)
    (run,) = (place / "runs").glob("uce-*")
    one = str(run.relative_to(place))
    assert worker.whole(["generate", "a kite", "--out", "pictures", *DRAW], place) == 0, told(place)
    merge = ["patch", "merge", one, one, "--out", "merged.safetensors"]
    assert worker.whole(merge, place) == 0, told(place)
    assert target.read_text() == "elsewhere"
    assert (place / "merged.safetensors.part").is_symlink()
    for name in ("pictures.part", ".pictures.part"):
        assert (place / name / "mine.txt").read_text() == "a person's own"


def test_a_link_in_an_outputs_place_is_replaced_and_not_followed(worker: Worker, ground: Path):
    place = copied(ground, "linked output")
    target = place / "target.txt"
    target.write_text("elsewhere")
    (place / "out.safetensors").symlink_to(target)
    (run,) = (place / "runs").glob("uce-*")
    one = str(run.relative_to(place))
    words = ["patch", "merge", one, one, "--out", "out.safetensors"]
    assert worker.whole(words, place) == 2, "it exists"
    assert worker.whole([*words, "--force"], place) == 0, told(place)
    assert target.read_text() == "elsewhere"
    assert not (place / "out.safetensors").is_symlink()
    (place / "folder").symlink_to(place / "taken")
    words = ["generate", "a kite", "--out", "folder", "--force", *DRAW]
    assert worker.whole(words, place) == 2
    assert "a link" in told(place)


def test_a_link_in_a_run_is_not_written_through(worker: Worker, ground: Path):
    place = copied(ground, "linked run")
    words = ["erase", "uce", "--concept", "kite", *SMALL]
    alone = copied(ground, "linked alone")
    assert worker.whole(words, alone) == 0, told(alone)
    (run,) = (alone / "runs").glob("uce-kite-*")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (place / "runs" / run.name).mkdir()
    (place / "runs" / run.name / "images").symlink_to(elsewhere)
    assert worker.whole(words, place) == 2
    assert "a link" in told(place)
    assert not any(elsewhere.iterdir())


# --- no room ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_sentence_and_a_rerun_goes_on(
    worker: Worker, ground: Path, small_disk: Path
):
    place = copied(ground, "full disk")
    (run,) = (place / "runs").glob("uce-*")
    one = str(run.relative_to(place))
    filler = small_disk / "filler"
    commands = [
        ["patch", "merge", one, one, "--out", str(small_disk / "out.safetensors")],
        ["patch", "export", one, "--out", str(small_disk / "out")],
        ["generate", "a kite", "--out", str(small_disk / "pictures"), *DRAW],
        ["erase", "uce", "--concept", "kite", "--runs", str(small_disk / "runs"), *SMALL],
    ]
    for words in commands:
        filler.write_bytes(b"x" * (1 << 20)) if not filler.exists() else None
        assert worker.whole(words, place) == 2, words
        assert "the disk is full" in told(place), words
        left = [p for p in small_disk.rglob("*") if p.is_file() and p.stat().st_size]
        assert left == [filler], "nothing half-written stays"
        filler.unlink()
        if words[0] == "generate":  # the control: there is room for this one
            assert worker.whole(words, place) == 0, told(place)
            shutil.rmtree(small_disk / "pictures")
