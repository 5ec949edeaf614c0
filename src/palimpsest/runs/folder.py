"""Run folders: what was asked, what came out, and enough to repeat it.

```
runs/esd-parachute-3f9a1c2e/
  run.json  patch.safetensors  log.jsonl  images/ + images.jsonl  scores.jsonl
```
The folder's name ends in a hash of the resolved configuration, so that the same command finds its
own folder again: a finished run returns at once, a killed one goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.core.atomic import append_line, remove, sweep, write_text
from palimpsest.core.brief import brief
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import component, read_rows
from palimpsest.core.locks import Tell, folder_lock, lock_path
from palimpsest.core.typed import build, plain
from palimpsest.runs.record import FORMAT, Record
from palimpsest.runs.rows import form_of

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    def __repr__(self) -> str:
        try:
            record = self.record()
        except PalimpsestError:
            return brief(self, repr(self.name), "unreadable")
        shown = [n for n in record.numbers if n.n and n.unit == "%"][:2]
        rates = [f"{n.name} {100 * n.value:.1f} %" for n in shown]
        told = ", ".join(record.names)
        return brief(self, repr(self.name), record.title, told, record.status or "empty", *rates)

    def _repr_html_(self) -> str:
        from palimpsest.runs.shown import html

        return html(self.name, self.record())

    @classmethod
    def place(cls, root: Path, title: str, asked: Record) -> Run:
        """Return the folder that belongs to what is asked; it need not exist yet.

        Args:
            root: where runs are kept.
            title: the readable part of the folder's name; what no name may hold is `_` there.
            asked: a record of all that the run depends on, and of nothing else.

        Raises:
            PalimpsestError: the place cannot be a folder, or holds a run of a newer format.
        """
        text = json.dumps(plain(asked), sort_keys=True)
        run = cls(root / f"{_part(title)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PalimpsestError(
                f"{root}: cannot be made a folder ({error.strerror or error}); "
                "choose another place with --runs"
            ) from error
        run.record()  # refused early, if it is of a newer format
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Return an existing run.

        Raises:
            PalimpsestError: no run lies there, or it is of a newer format.
        """
        run = cls(folder if folder.name.strip(".") else folder.resolve())  # `.` has no name
        if not run.begun:
            raise PalimpsestError(f"{folder}: no run lies here (it has no run.json)")
        run.record()
        return run

    def path(self, name: str) -> Path:
        """Return a file of this run."""
        return self.folder / name

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def begun(self) -> bool:
        """Whether it has a record."""
        return self.path("run.json").is_file()

    def record(self) -> Record:
        """Return what `run.json` says; an empty record if there is none yet."""
        return Record.read(self.path("run.json")) if self.begun else Record()

    @property
    def done(self) -> bool:
        """Whether it went to the end."""
        return self.record().status == "done"

    def write(self, record: Record) -> None:
        """Write `run.json`."""
        record.write(self.path("run.json"))

    def update(self, **fields: Any) -> None:
        """Change fields of `run.json`."""
        self.write(replace(self.record(), **fields))

    def former(self, title: str, command: str) -> Run | None:
        """Return a finished run of the same command that an older format called otherwise."""
        for path in sorted(self.folder.parent.glob(f"{_part(title)}-*/run.json")):
            record = Record.read(path)
            if record.format < FORMAT and record.status == "done" and record.command == command:
                return Run(path.parent)
        return None

    @contextmanager
    def locked(self, tell: Tell) -> Iterator[None]:
        """Hold the folder against other processes, which wait and say so.

        Raises:
            PalimpsestError: something in the folder is a link, which would be written through.
        """
        with folder_lock(self.folder, tell):
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if path.is_symlink():
                    raise PalimpsestError(
                        f"{path}: a link, and a run writes into its own folder alone; put in its "
                        "place what it points to"
                    )
            sweep(self.folder)
            yield

    def discard(self) -> None:
        """Take the folder and its lock away: what it was for has been refused. For its holder.

        Who waits for the lock meanwhile will be refused the same.
        """
        remove(self.folder)
        lock_path(self.folder).unlink(missing_ok=True)

    def append(self, name: str, *rows: dict[str, Any]) -> None:
        """Add rows to a `.jsonl` file."""
        append_line(self.path(name), "\n".join(map(json.dumps, rows)))

    def write_rows(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a `.jsonl` file whole."""
        write_text(self.path(name), "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read a `.jsonl` file; an absent one has no rows, and half a last row is left out.

        Raises:
            PalimpsestError: a row that is none of this file, as `rows.form_of` says.
        """
        return [row for row, _ in self._read(name)]

    def values(self, form: type[T], name: str = "") -> list[T]:
        """Return the rows of a file that holds values of this type, as `rows` reads them."""
        return [value for _, value in self._read(name or form.name)]  # type: ignore[attr-defined]

    def _read(self, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
        path, form = self.path(name), form_of(name)
        for number, row in enumerate(read_rows(path) if path.exists() else (), start=1):
            try:
                yield row, build(form, row)
            except TypeError as error:
                raise PalimpsestError(
                    f"{path}, row {number}: {error}; remove the file and run the same command again"
                ) from None

    def kept(self, name: str) -> Path:
        """Return a file of this run that one of its rows names.

        Raises:
            PalimpsestError: a link leads out of the folder.
        """
        path = self.path(name)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise PalimpsestError(f"{path}: a link that leads out of the run's folder; remove it")
        return path

    def lineage(self) -> list[Run]:
        """Return this run, the one that it attacked, and so on; the last one may not be there.

        Raises:
            PalimpsestError: they form a circle.
        """
        found: list[Run] = [self]
        while subject := found[-1].record().subject:
            if subject in [run.name for run in found]:
                told = f"attacked itself, {subject}, as run.json has it; name another run"
                raise PalimpsestError(f"{self.folder}: {told}")
            found.append(Run(self.folder.parent / subject))
        return found


def _part(title: str) -> str:
    return component(title, 160)
