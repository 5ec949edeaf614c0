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
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError

FORMAT = 1
"""Version of the folder's form; a folder of a newer one is refused."""


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @classmethod
    def place(cls, root: Path, title: str, config: dict[str, Any]) -> Run:
        """The folder that belongs to a configuration; it need not exist yet.

        Raises:
            PalimpsestError: the place cannot be a folder, or holds a run of a newer format.
        """
        text = json.dumps(config, sort_keys=True, default=str)
        name = f"{title}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".replace(" ", "_")
        run = cls(root / name)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PalimpsestError(
                f"{root}: cannot be made a folder ({error.strerror or error}); "
                "choose another place with --runs"
            ) from error
        if run.path("run.json").exists():
            run.record()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run.

        Raises:
            PalimpsestError: no run lies there, or it is of a newer format.
        """
        run = cls(folder)
        if not run.path("run.json").is_file():
            raise PalimpsestError(f"{folder}: no run lies here (it has no run.json)")
        run.record()
        return run

    def path(self, name: str) -> Path:
        """A file of this run."""
        return self.folder / name

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    def record(self) -> dict[str, Any]:
        """What `run.json` says; an empty record if there is none yet."""
        path = self.path("run.json")
        if not path.exists():
            return {}
        try:
            record = json.loads(path.read_text())
            form = record["format"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise PalimpsestError(f"{path}: not a run record ({error})") from error
        if form > FORMAT:
            raise PalimpsestError(
                f"{path}: written by a newer Palimpsest (format {form}, this one reads up to "
                f"{FORMAT}); update Palimpsest"
            )
        return record

    @property
    def done(self) -> bool:
        """Whether it went to the end."""
        return self.record().get("status") == "done"

    def update(self, **fields: Any) -> None:
        """Change fields of `run.json`."""
        record = {"format": FORMAT, **self.record(), **fields}
        write_text(self.path("run.json"), json.dumps(record, indent=2, default=str) + "\n")

    def discard(self) -> None:
        """Take the folder away: what it was for has been refused."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one row to a `.jsonl` log."""
        with self.path(name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_rows(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a `.jsonl` file whole."""
        write_text(self.path(name), "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read a `.jsonl` file; an absent one has no rows."""
        path = self.path(name)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line]
