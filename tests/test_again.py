"""A finished command that is said again answers from the folder, and only where nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from palimpsest.cli import again, console, main, tree
from palimpsest.cli.verbs.erase import Erase
from palimpsest.core import provenance, registry
from palimpsest.erase import UCE
from palimpsest.runs.folder import Run

ASKED = """prompt,evaluation_seed,object,style
A parachute image in photo style.,188,parachute,photo
A church image in photo style.,188,church,photo
"""


def fresh(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Say a command in a process of its own, whose last line tells whether torch was loaded."""
    script = (
        "import sys; from palimpsest.cli import main; code = main(sys.argv[1:]); "
        "print('torch.nn' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that was carried out."""
    place = tmp_path_factory.mktemp("again")
    (place / "asked.csv").write_text(ASKED)
    named = ["--prompts", str(place / "asked.csv"), "--runs", str(place / "runs")]
    words = ["erase", "uce", "--concept", "parachute", "--draw.steps", "4", *named]
    assert main(words) == 0
    return words


def ask(words: list[str]) -> again.Again:
    options, method = tree._read_method(Erase, UCE, "world", words)
    call = tree.Call(tuple(words), "uce", method, "world")
    return again.look(options, call, options.runs)


def test_it_prints_the_same_and_loads_no_torch(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "UA" in printed
    shown = fresh(words)
    assert shown.stdout == f"{printed}False\n"


def touch(path: Path) -> Callable[[], None]:
    """Change a file's time; return what sets it back."""
    was = path.stat()
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1_000_000_000))
    return lambda: os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def away(path: Path) -> Callable[[], None]:
    """Take a folder away; return what brings it back."""
    other = path.rename(path.with_name("elsewhere"))

    def back() -> None:
        other.rename(path)

    return back


def place(words: list[str], name: str) -> Path:
    (found,) = Path(words[-1]).glob(name)
    return found


CHANGES: dict[str, Callable[[list[str]], Callable[[], None]]] = {
    "the table of prompts": lambda words: touch(Path(words[-3])),
    "the run's record": lambda words: touch(place(words, "uce-*/run.json")),
    "gold": lambda words: away(place(words, "gold-*")),
    "the unedited model's pictures": lambda words: away(place(words, "original-*")),
    "the run": lambda words: away(place(words, "uce-*")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_done_again(words: list[str], what: str) -> None:
    assert main(words) == 0
    assert list(ask(words).runs() or ()) == ["erased"]
    back = CHANGES[what](words)
    try:
        assert ask(words).runs() is None
    finally:
        back()
    assert ask(words).runs() is not None


@pytest.mark.parametrize(
    "more", [["--seed", "1"], ["--force"], ["--dry-run"], ["--no-gold"], ["--lamb", "0.2"]]
)
def test_another_command_is_another(words: list[str], more: list[str]) -> None:
    assert ask(words).runs() is not None
    assert ask([*words[:-2], *more, *words[-2:]]).runs() is None


def test_another_folder_version_or_package_is_asked_afresh(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = EntryPoint("more", "some.where:More", "palimpsest.measures")
    for change in (
        lambda: monkeypatch.chdir(tmp_path),
        lambda: monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9"}),
        lambda: monkeypatch.setattr(again, "entry_points", lambda group: [theirs]),
    ):
        assert ask(words).runs() is not None
        change()
        assert ask(words).runs() is None
        monkeypatch.undo()


@pytest.mark.parametrize(
    "more", [["--model", "owner/name"], ["--model", "gpt2"], ["--judge", "hf:owner/name"]]
)
def test_what_lies_on_the_hub_is_never_answered(words: list[str], more: list[str]) -> None:
    assert not ask([*words[:-2], *more, *words[-2:]]).key


def test_judges_of_other_packages_are_never_answered(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = [*words[:-2], "--judge", "theirs:folder", *words[-2:]]
    theirs = EntryPoint("theirs", "some.where:Judge", "palimpsest.judges")
    monkeypatch.setattr(registry, "entry_points", lambda group: [theirs] * group.endswith("judges"))
    assert not ask(asked).key


def test_folders_behind_links_are_looked_into(words: list[str], tmp_path: Path) -> None:
    unet, model = tmp_path / "weights" / "unet", tmp_path / "model"
    unet.mkdir(parents=True)
    (unet / "weights.safetensors").write_bytes(b"0")
    model.mkdir()
    (model / "unet").symlink_to(unet)
    (unet / "round").symlink_to(tmp_path)
    asked = [*words[:-2], "--model", str(model), *words[-2:]]
    before = ask(asked).files
    assert str(unet / "weights.safetensors") in before
    touch(unet / "weights.safetensors")
    assert ask(asked).files != before


def test_a_command_that_warned_warns_again(words: list[str]) -> None:
    asked = ask([*words[:-2], "--seed", "2", *words[-2:]])
    runs = {"erased": Run(place(words, "uce-*"))}
    console.warn("something is odd")
    asked.keep(runs)
    assert not [*Path(words[-1]).glob(f"*/again-{asked.key}.json")]
    again.Again(asked.root, asked.key, asked.program, asked.files, len(console.WARNED)).keep(runs)
    assert asked.runs() == runs


def test_an_answer_waits_for_nobody(words: list[str]) -> None:
    asked = ask([*words[:-2], "--seed", "3", *words[-2:]])
    run = Run(place(words, "uce-*"))
    with ThreadPoolExecutor(1) as pool:
        with run.locked(print):
            pool.submit(asked.keep, {"erased": run}).result(timeout=20)
        assert asked.runs() is None
        pool.submit(asked.keep, {"erased": run}).result(timeout=20)
    assert asked.runs() is not None


@pytest.mark.parametrize("text", ["", "[]", '{"program": 3}', '{"runs": {"erased": "../x"}}'])
def test_an_answer_that_cannot_be_read_is_none(words: list[str], text: str) -> None:
    asked = ask(words)
    (path,) = asked.root.glob(f"*/again-{asked.key}.json")
    whole = path.read_text()
    path.write_text(text)
    assert asked.runs() is None
    path.write_text(whole)
    assert asked.runs() is not None


def test_a_recovery_is_answered_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    erased = str(place(words, "uce-*"))
    recover = ["recover", "restoration", erased, "--measure.pictures", "1", "--draw.steps", "1"]
    assert main(recover) == 0
    tables = capsys.readouterr().out.partition("How often")[2]
    shown = fresh(recover).stdout
    assert tables
    assert shown.partition("How often")[2] == f"{tables}False\n"
    touch(Path(erased, "patch.safetensors"))
    assert fresh(recover).stdout.endswith("True\n")
