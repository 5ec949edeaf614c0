"""How a command tells what came out: as tables, as one JSON document, or by what it made alone.

Everything that a command tells passes through here, so that no verb knows of `-q` or `--json`.
Nothing heavy is imported.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUIET, JSON = ("-q", "--quiet"), ("--json",)
FLAGS = {
    "-q, --quiet": "Print nothing but what was made, and errors.",
    "--json": "Print one JSON document (docs/scripts.md).",
}
"""The flags that every command takes, wherever they stand → what they do."""


@dataclass
class Telling:
    """What one command has told so far, and how it is told."""

    words: tuple[str, ...] = ()
    quiet: bool = False
    json: bool = False
    runs: list[Any] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


now = Telling()
"""The command that runs."""


def begin(words: Sequence[str]) -> list[str]:
    """Return a command line without the flags that every command takes, which hold from now on.

    Behind a word `--` nothing is a flag.
    """
    global now
    end = [*words, "--"].index("--")
    flags = {*words[:end]}
    rest = [word for word in words[:end] if word not in (*QUIET, *JSON)]
    rest += words[end:]
    now = Telling(tuple(rest), bool(flags & {*QUIET}), bool(flags & {*JSON}))
    return rest


def end(code: int) -> None:
    """Write the document of a command that came to its end, if one is asked for."""
    global now
    done, now = now, Telling()
    if done.json and (done.runs or done.tables or done.text or done.made):
        page = {
            "palimpsest": version("palimpsest-ml"),
            "command": shlex.join(["palimpsest", *done.words]),
            "exit": code,
            "runs": done.runs,
            "tables": done.tables,
            "text": done.text,
            "made": done.made,
        }
        sys.stdout.write(json.dumps(page, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Shown:
    """A value that is shown in words of its own; the document has the value."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


def plain(value: Any) -> Any:
    """Return a value as the document holds it: a number of a run whole, NaN as null."""
    if isinstance(value, Shown):
        return plain(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    known = value is None or isinstance(value, str | int | float)
    return value if known else str(value).replace("\n", " ")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    meanings: Mapping[str, str] | None = None,
) -> bool:
    """Return whether a table is still to be shown; the document has it, if one is asked for."""
    if now.json:
        page = {"title": title, "columns": columns, "rows": rows, "meanings": meanings or {}}
        now.tables.append(plain(page))
    return not (now.json or now.quiet)


def say(text: str) -> bool:
    """Return whether a line is still to be shown, likewise."""
    if now.json and text:
        now.text.append(text)
    return not (now.json or now.quiet)


def made(path: Path | str) -> bool:
    """Return whether what was made is still to be told, likewise."""
    if now.json:
        now.made.append(str(path))
    return not now.json


def result(text: str) -> None:
    """Tell a text that is all that was asked for: it is there with `-q`, too."""
    if say(text) or not now.json:
        sys.stdout.write(text + "\n")


def names(title: str, rows: Sequence[tuple[str, str]], width: int = 14) -> None:
    """Tell names and what each is, likewise."""
    if table(title, ["name", "about"], rows) or not now.json:
        lines = [f"{title}:", *(f"  {name:<{width}} {about}" for name, about in rows), ""]
        sys.stdout.write("\n".join(lines) + "\n")
