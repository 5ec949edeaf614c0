"""What is computed over large files is computed once, and anew as soon as one of them changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsest.core import hashes, provenance
from palimpsest.models import fingerprints
from palimpsest.models.loading import load_model
from palimpsest.world import assets


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and files that count as large from the first byte."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LEAST_BYTES", 1)
    return tmp_path / "cache" / "palimpsest" / "hashes"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch):
    """The time of change cannot be set: files count as settled at once."""
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was hashed."""
    seen, real = [], provenance._digest

    def digest(paths, place):
        seen.append(place.name)
        return real(paths, place)

    monkeypatch.setattr(provenance, "_digest", digest)
    return seen


def plain(path: Path) -> str:
    """Return the digest as docs/runs.md and older records have it."""
    data = path.read_bytes()
    return hashlib.sha256(f".\n{len(data)}\n".encode() + data).hexdigest()[:16]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, settled, counted: list[str]):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert [provenance.digest(path) for _ in range(3)] == [plain(path)] * 3
    assert counted == ["weights"]
    before = path.stat()
    path.write_bytes(b"two")  # as long, in the same inode
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert provenance.digest(path) == plain(path)
    assert len(counted) == 2
    path.write_bytes(b"six")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # its time is forged
    assert provenance.digest(path) == plain(path)
    other = tmp_path / "other"
    other.write_bytes(b"ten")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    other.replace(path)  # another file of this name
    assert provenance.digest(path) == plain(path)
    assert len(counted) == 4


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path, settled, counted: list[str]):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 4)
    link = tmp_path / "link"
    link.symlink_to("a")
    assert provenance.digest(link) == plain(link)
    link.unlink()
    link.symlink_to("b")  # as the Hub's cache does for another revision
    assert provenance.digest(link) == plain(tmp_path / "b")


def test_a_file_just_written_is_hashed_again(tmp_path: Path, cache: Path, counted: list[str]):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))  # old by one of its times, and just changed by the other
    assert provenance.digest(path) == provenance.digest(path) == plain(path)
    assert counted == ["weights"] * 2
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_kept(
    tmp_path: Path, cache: Path, settled, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    files = hashes.Files.of([path])
    path.write_bytes(b"three")
    files.keep("it", "of one")
    assert not cache.exists()
    assert hashes.Files.of([path]).recall("it") is None


SPOILT = {
    "nothing": b"",
    "half": b'{"what": "dig',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "deep": b"[" * 5000,
    "another value": b"value",
    "a folder": None,
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_cache_does_no_harm(tmp_path: Path, cache: Path, settled, case: str):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    right = provenance.digest(path)
    (entry,) = cache.iterdir()
    text = entry.read_text()
    if case == "a folder":
        entry.unlink()
        entry.mkdir()
    elif case == "another value":
        entry.write_text(json.dumps({**json.loads(text), "value": ["x"]}))
    else:
        entry.write_bytes(SPOILT[case] or b"")
    assert provenance.digest(path) == right
    if case != "a folder":
        assert entry.read_text() == text  # mended


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_no_cache_can_be_written(tmp_path: Path, monkeypatch, settled, place: str):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file") if place == "a file" else blocked.mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert provenance.digest(path) == provenance.digest(path) == plain(path)


BOTH = """
import sys
from pathlib import Path
from palimpsest.core import hashes, provenance
hashes.LEAST_BYTES, hashes.SETTLED_SECONDS = 1, -1.0
assert "torch" not in sys.modules
print(*{provenance.digest(Path(sys.argv[1])) for _ in range(200)})
"""


def test_processes_at_once_do_not_disturb_each_other(tmp_path: Path, cache: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"one" * 1000)
    words = [sys.executable, "-c", BOTH, str(path)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {each.communicate()[0].strip() for each in started} == {plain(path)}
    assert [each.returncode for each in started] == [0] * 3
    assert len([*cache.iterdir()]) == 1  # nothing half-written stays


# --- the weights of a model ---


def test_a_models_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch, settled, cache: Path):
    made, real = [], fingerprints.fingerprint

    def fingerprint(tensor):
        made.append(tensor.shape)
        return real(tensor)

    monkeypatch.setattr(fingerprints, "fingerprint", fingerprint)
    first = load_model("world")
    right, tensors = first.identity, len(first._parameters)
    assert len(made) == tensors
    made.clear()
    second = load_model("world")
    assert second.identity == right
    assert {n: second.fingerprint(n) for n in second._parameters} == first._fingerprints
    assert not made
    half = load_model("world", dtype="bfloat16").identity  # other numbers, beside these
    assert half != right
    assert len(made) == tensors
    made.clear()
    assert load_model("world").identity == right
    assert not made
    # a weight that somebody changes in memory is not the file's
    third = load_model("world")
    table = third._parameters[third.text.tables[0]]
    table.data[[5, 6]] = table.data[[6, 5]].clone()
    assert third.identity != right
    assert len(made) == 1
    assert load_model("world").identity == right  # nor is it anybody else's


def test_weights_written_after_the_model_was_read_are_not_taken_for_its_own(
    tmp_path: Path, settled, cache: Path
):
    import shutil

    place = shutil.copytree(assets.clip(), tmp_path / "clip")
    model = load_model(f"clip:{place}")
    file = place / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\x00\x00\x00\x00"
    file.write_bytes(data)
    right = model.identity  # of what was read
    assert not cache.exists()
    assert load_model(f"clip:{place}").identity != right


class Shown:
    """Keeps what progress was shown."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def task(self, label: str, total: int, done: int = 0):
        self.said.append((label, total, done))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.said.append(("end",))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.said.append((steps,))


def test_progress_is_shown_of_what_takes_long_alone(monkeypatch: pytest.MonkeyPatch):
    clock, bar = [0.0], Shown()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(hashes, "shown", lambda: bar)
    for seconds in (0.1, 0.9):
        with hashes.late("reading", 5) as advance:
            for _ in range(5):
                clock[0] += seconds
                advance(1)
    assert bar.said == [("reading", 5, 2), (1,), (1,), (1,), ("end",)]
