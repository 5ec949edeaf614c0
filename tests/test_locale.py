"""Other machines: a locale that is not UTF-8, and no modules of POSIX alone, as on Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ALONE = """
import builtins, sys, psutil  # which reads `resource` itself where there is one
POSIX, given = ("resource", "fcntl", "pwd", "grp", "termios"), builtins.__import__

def lacking(name, scope=None, *rest, **named):
    if name in POSIX and ((scope or {}).get("__name__") or "").startswith("palimpsest"):
        raise ModuleNotFoundError(name)
    return given(name, scope, *rest, **named)

builtins.__import__ = lacking  # other packages have versions of their own for Windows
sys.modules["resource"] = None
from palimpsest.cli import main
sys.exit(main(sys.argv[1:]))
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HUB_OFFLINE": "1"}
ASCII["PYTHONIOENCODING"] = ""  # as if it were not set
"""What makes Python read and write files as ASCII unless it is told otherwise."""


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", ALONE, *map(str, words)]
    return subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, check=False)


def test_the_locale_is_really_ascii():
    """The control: a file opened as this process opens it cannot hold what the commands write."""
    said = "import locale, pathlib; pathlib.Path('/dev/null').write_text('\u2026')"
    environment = {**os.environ, **ASCII}
    command = [sys.executable, "-c", said]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert b"UnicodeEncodeError" in ended.stderr


def test_every_command_lists_itself():
    for words in (("--help",), ("list",), ("erase", "esd", "--help")):
        ended = run(*words)
        assert (ended.returncode, ended.stderr) == (0, b""), words


def test_a_prompt_with_an_emoji_is_drawn_and_kept(tmp_path: Path):
    ended = run("generate", "a cat \N{CAT FACE}", "--out", tmp_path / "out", "--draw.steps", 1)
    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "out" / "prompts.csv").read_text(encoding="utf-8")
    assert "a cat \N{CAT FACE}" in table
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 1


def test_an_erasure_and_its_page(tmp_path: Path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,object\na cat \N{CAT FACE},cat\na parachute,parachute\n", "utf-8")
    words = ("--prompts", prompts, "--runs", tmp_path / "runs", "--force", "--draw.steps", 1)
    ended = run("erase", "uce", "--concept", "parachute", *words)
    assert ended.returncode == 0, ended.stderr
    ended = run("report", tmp_path / "runs")
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")
    assert "a cat \N{CAT FACE}" in page


def test_words_that_are_no_utf_8_are_refused_in_one_sentence(tmp_path: Path):
    command = [sys.executable.encode(), b"-c", ALONE.encode(), b"generate", b"a cat \xff"]
    ended = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count(b"\n") == 1
    assert b"no UTF-8" in ended.stderr
