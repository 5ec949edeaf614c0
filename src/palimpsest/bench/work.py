"""One command of many: how it is carried out, and where its answer is kept.

`python -m palimpsest.bench.work FOLDER -- ARGV…` does it in a process of its own.
"""

from __future__ import annotations

import io
import json
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object

REFUSED, BROKEN = 2, 70


@dataclass(frozen=True)
class Work:
    """One command of many."""

    key: str
    """A digest; a path component."""
    argv: tuple[str, ...]
    """Of palimpsest, without the program's name; may hold "{KEY}" for the run of other work."""
    folder: Path
    """Absolute: where its answer and its log are kept: answer.json, log.txt."""
    after: tuple[str, ...]
    """Keys of work that must be finished before."""
    title: str
    """For people."""


def carry_out(argv: Sequence[str], folder: Path) -> int:
    """Run a command in this process; its log and its answer lie in `folder`. Never raises."""
    from palimpsest.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    answer = io.StringIO()
    with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stderr(log):
        try:
            words = [_filled(word, folder.parent) for word in argv]
            with redirect_stdout(answer):
                code = main([*words, "--json"])
            if answer.getvalue():
                write_text(folder / "answer.json", answer.getvalue())
            return code
        except PalimpsestError as error:
            log.write(f"palimpsest: {error}\n")
            return REFUSED
        except BaseException:
            traceback.print_exc()
            return BROKEN


def _filled(word: str, root: Path) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: _run_of(root / found[1] / "answer.json"), word)


def _run_of(answer: Path) -> str:
    runs = [run["folder"] for run in read_object(answer)["runs"] if run["folder"]]
    return json.loads(json.dumps(runs[-1]))


if __name__ == "__main__":
    place, _, *rest = sys.argv[1:]
    raise SystemExit(carry_out(rest, Path(place)))
