"""One command of a campaign, carried out: its words in, its answer and its log in a folder."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli import REFUSED, main, telling
from palimpsest.core.atomic import whole
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.runs.folder import Run

ANSWER, LOG = "answer.json", "log.txt"
SHORT = 3
"""The exit code of a search that did not reach its end: there is a run all the same."""
PLACE = re.compile(r"\{([0-9a-f]{12})\}")
"""In a word: the run folder that another command made, by the command's key."""


@dataclass(frozen=True)
class Work:
    """A command, and what must have been done before it."""

    key: str
    """Digest of the command, and of those whose runs it starts from."""
    argv: tuple[str, ...]
    """The command line without the program's name; `{KEY}` stands for the run folder that the
    command of that key made."""
    folder: Path
    """Where its answer and its log are kept: two folders below that of the runs, and beside the
    same of every other command."""
    after: tuple[str, ...] = ()
    """Keys of the commands whose runs it starts from."""
    title: str = ""
    """What it is called."""

    @property
    def answer(self) -> dict[str, Run] | None:
        """What each of its runs is called → the run; None unless all are done."""
        return answer_of(self.folder)

    @property
    def said(self) -> str:
        """The last line of its log; empty without one."""
        return last_line(self.folder / LOG)


def answer_of(folder: Path) -> dict[str, Run] | None:
    """Return the runs of a command by what they are called; None unless all of them are done."""
    try:
        page, root = read_object(folder / ANSWER), folder.parent.parent
        told = {run["name"]: run["folder"] for run in page["runs"] if run["folder"]}
        runs = {name: Run(root / Path(place).name) for name, place in told.items()}
        done = bool(runs) and all(run.done for run in runs.values())
    except (PalimpsestError, OSError, LookupError, TypeError, AttributeError):
        return None
    return runs if done else None


def last_line(log: Path, most: int = 4096) -> str:
    """Return the last line of a log that says something, whatever else writes to it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def carry_out(argv: Sequence[str], folder: Path) -> int:
    """Carry out a command in this process and keep its answer.

    Args:
        argv: the command line, as of `Work`.
        folder: takes `answer.json`, the command's `--json` document, once it has ended well, and
            `log.txt`, whatever else it said.

    Returns:
        The exit code of the command; 2 where a command before it has no answer, 1 where it broke.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log, _told_to(log):
        log.write(f"$ {shlex.join(['palimpsest', *argv])}\n")
        try:
            words = [_placed(word, folder) for word in argv]
            with whole(folder / ANSWER) as part:
                with part.open("w", encoding="utf-8") as page, redirect_stdout(page):
                    code = main([*words, "--json"])
                if code not in (0, SHORT):
                    raise _FailedError(code)
        except _FailedError as failed:
            return failed.code
        except PalimpsestError as error:
            log.write(f"palimpsest: {error}\n")
            return REFUSED
        except Exception:
            log.write(traceback.format_exc())
            return 1
    return code


class _FailedError(Exception):
    """A command did not end well, and has no answer."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def _told_to(log: object) -> Iterator[None]:
    """Let what is said go to a log, apart from what the command around this one tells."""
    outer = telling.now
    try:
        with redirect_stderr(log):  # type: ignore[type-var]
            yield
    finally:
        telling.now = outer


def _placed(word: str, folder: Path) -> str:
    """Return a word with the run folders that it stands for.

    Raises:
        PalimpsestError: the command that makes one has not been done.
    """

    def place(found: re.Match[str]) -> str:
        runs = answer_of(folder.parent / found[1])
        if runs is None:
            raise PalimpsestError(f"not begun, since what it starts from ({found[1]}) is not done")
        return os.path.relpath(next(iter(runs.values())).folder)

    return PLACE.sub(place, word)
