"""Small files that are read: a person's own, records of runs, and those that lie beside a module.

Whatever is wrong with one is told in a sentence. Links are followed, and lead to a regular file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import stat
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import zip_longest
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from palimpsest.core.errors import PalimpsestError

MOST_BYTES = 1 << 28
"""A text, a table or a picture of more bytes is refused: 256 MiB."""
MOST_DEEP = 100
"""JSON that is nested deeper is refused."""
ILLEGAL = re.compile(r"[^\w.-]+|\.\.+")
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³])(\.|$)", re.IGNORECASE)
"""What Windows takes for a device, whatever stands behind the dot."""


def beside(module: str, name: str) -> str:
    """Return the text of a file that is shipped in the folder of a module, of its `__file__`."""
    return Path(module).with_name(name).read_text(encoding="utf-8")


def component(text: str, most: int = 80) -> str:
    """Return a text as one part of a path that is legal everywhere, `_` for what is not.

    Args:
        text: any text; one that is such a part stays as it is.
        most: letters to keep. A part has 200 bytes at most, too, and is never empty.
    """
    part = ILLEGAL.sub("_", text)[:most].encode(errors="replace")[:200].decode(errors="ignore")
    part = part.strip("_.")
    return f"_{part}"[:most].rstrip(".") if not part or DEVICE.match(part) else part


def only_component(text: str) -> str:
    """Return a text as `component` does, and with a digest of it where it is no such part."""
    part = component(text, 120)
    return (
        part if part == text else f"{part}-{hashlib.sha256(ascii(text).encode()).hexdigest()[:8]}"
    )


def is_component(name: str) -> bool:
    """Return whether a name leads to what lies in a folder, and nowhere else."""
    plain = bool(name.strip(". ")) and not PureWindowsPath(name).drive
    return plain and not any(mark in name for mark in "/\\\0")


def regular(path: Path, most: int | None = None) -> Path:
    """Return the path again, of a regular file.

    Args:
        path: links in it are followed.
        most: refuse a file of more bytes.

    Raises:
        PalimpsestError: no such file, none that can be read to an end, or a larger one.
    """
    shown = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise PalimpsestError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:  # a loop of links; a name that no file can have
        raise PalimpsestError(f"{shown}: cannot be read ({error})") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise PalimpsestError(f"{shown}: {what}, and no file that can be read")
    if most is not None and found.st_size > most:
        raise PalimpsestError(
            f"{shown}: has {found.st_size:,} bytes; of such a file at most {most:,} are read"
        )
    return path


def read_bytes(path: Path) -> bytes:
    """Return what a regular file of at most `MOST_BYTES` holds.

    Raises:
        PalimpsestError: it is none, or cannot be read.
    """
    try:
        return regular(path, MOST_BYTES).read_bytes()
    except OSError as error:
        raise PalimpsestError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_utf8(path: Path) -> str:
    """Read a text file.

    Raises:
        PalimpsestError: no such file, or it is no text in UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PalimpsestError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def parse_json(text: str | bytes, place: object) -> Any:
    """Return the value that a JSON text holds.

    Args:
        text: the text.
        place: what it was read from, in words.

    Raises:
        PalimpsestError: it is no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
        level = [value] if isinstance(value, dict | list) else []
        for _ in range(MOST_DEEP):
            each = (v.values() if isinstance(v, dict) else v for v in level)
            level = [v for inner in each for v in inner if isinstance(v, dict | list)]
        if level:
            raise RecursionError(f"nested more than {MOST_DEEP} deep")
        if "\\ud" in str(text).lower():  # halves of characters, which no file can hold
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
    except (ValueError, RecursionError) as error:
        raise PalimpsestError(f"{place}: no whole JSON ({error})") from None


def parse_object(text: str | bytes, place: object) -> dict[str, Any]:
    """Return the JSON object that a text holds; arguments as of `parse_json`.

    Raises:
        PalimpsestError: it holds none.
    """
    value = parse_json(text, place)
    if not isinstance(value, dict):
        raise PalimpsestError(f"{place}: a JSON {type(value).__name__}, where an object belongs")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        PalimpsestError: no such file, or it holds none.
    """
    return parse_object(read_utf8(path), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a `.jsonl` file, one a line; half a last line is left out.

    Raises:
        PalimpsestError: no such file, or another line that is none.
    """
    *lines, last = read_utf8(path).split("\n")
    rows = [parse_object(t, f"{path}, line {i}") for i, t in enumerate(lines, 1) if t.strip()]
    try:
        return [*rows, parse_object(last, path)] if last.strip() else rows
    except PalimpsestError:
        return rows  # whoever wrote it was stopped in the middle


class Row(NamedTuple):
    """A row of a table."""

    number: int
    """As a spreadsheet counts: the header is row 1."""
    cells: dict[str, str]
    """Column → what stands there, nothing in a gap."""
    given: int
    """How many cells the row has, in the order of the columns."""


def read_table(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Return the columns of a CSV and its rows; commas, semicolons or tabs part its cells.

    Which of them do so is read off the header. Blanks around a column's name are dropped, and so
    are blank lines behind the last row.

    Raises:
        PalimpsestError: no such file, no text, two columns of one name, or, while the rows are
            read, a line that no table has or with more cells than there are columns.
    """
    text = read_utf8(path).lstrip("\n")
    try:
        how: dict[str, Any] = {"delimiter": _delimiter(text), "skipinitialspace": True}
        rows = csv.reader(StringIO(text), **how)
        columns = [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise PalimpsestError(f"{path}, row 1: {error}") from None
    if any("\n" in name for name in columns):
        raise PalimpsestError(f"{path}, row 1: goes over several lines; close its quotes")
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise PalimpsestError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return columns, _numbered(rows, columns, path)


def _delimiter(text: str) -> str:
    """Return the mark by which the header falls into most names, none of which holds another."""
    header, marks = text.partition("\n")[0], ",;\t"

    def names(mark: str) -> int:
        cells = next(csv.reader([header], delimiter=mark, skipinitialspace=True), [])
        return sum(not set(cell) & set(marks) for cell in cells)

    return max(marks, key=names)


def _numbered(rows: Iterable[list[str]], columns: list[str], path: Path) -> Iterator[Row]:
    number, blank = 1, []
    try:
        for number, cells in enumerate(rows, start=2):
            if not cells:
                blank.append(Row(number, dict.fromkeys(columns, ""), 0))
                continue
            if any(cell.strip() for cell in cells[len(columns) :]):
                told = "more cells than there are columns; put a text with commas in quotes"
                raise PalimpsestError(f"{path}, row {number}: {told}")
            yield from blank
            blank = []
            yield Row(
                number, dict(zip_longest(columns, cells[: len(columns)], fillvalue="")), len(cells)
            )
    except csv.Error as error:
        raise PalimpsestError(f"{path}, row {number + 1}: {error}") from None
