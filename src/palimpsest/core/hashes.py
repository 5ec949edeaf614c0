"""What was computed over large files, kept in the user's cache until one of them changes.

An entry is a small JSON file: what was computed, of which files, and the value. A file is known by
its real path, size, inode, and times of modification and of change. Whoever cannot read or write
the cache computes anew; nothing else depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object, read_utf8
from palimpsest.core.progress import Progress, Silent

LEAST_BYTES = 1 << 26
"""Files that have fewer together are computed over in a moment: nothing is kept of them."""
SETTLED_SECONDS = 2.0
"""A file that changed so shortly before may change again within one tick of its clock."""
LATE_SECONDS = 2.0
"""Progress is shown of what takes longer."""

shown: Callable[[], Progress] = Silent
"""Returns where to show progress; a command sets it."""


def folder() -> Path:
    """Return where entries lie: palimpsest/hashes in the user's cache."""
    usual = Path.home() / ".cache"
    if sys.platform == "win32":
        usual = Path(os.environ.get("LOCALAPPDATA", usual))
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "palimpsest" / "hashes"


@dataclass(frozen=True)
class Files:
    """Files as they were at one time."""

    stamps: tuple[tuple[str, int, int, int, int], ...]
    """Of each: real path, bytes, inode, times of modification and of change in nanoseconds."""
    taken: int
    """When, in nanoseconds."""

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Files:
        """Return files as they are; what is none is left out."""
        now, stamps = time.time_ns(), []
        for path in paths:
            with suppress(OSError, ValueError):
                real = path.resolve()
                if real.is_file():
                    s = real.stat()
                    times = s.st_mtime_ns, s.st_ctime_ns
                    stamps.append((str(real), s.st_size, s.st_ino, *times))
        return cls(tuple(stamps), now)

    @property
    def large(self) -> bool:
        """Whether anything is kept of them."""
        return sum(size for _, size, *_ in self.stamps) >= LEAST_BYTES

    def recall(self, what: str) -> Any:
        """Return the value that was kept of these very files; None if there is none."""
        if not self.large:
            return None
        with suppress(PalimpsestError, OSError, ValueError, RuntimeError):
            entry = parse_object(read_utf8(self._entry(what)), "the cache")
            if entry.get("what") == what and entry.get("files") == self._plain:
                return entry.get("value")
        return None

    def keep(self, what: str, value: Any) -> None:
        """Keep a value of these files, if they have not changed and are not fresh."""
        newest = max((time for *_, a, b in self.stamps for time in (a, b)), default=0)
        settled = newest < self.taken - SETTLED_SECONDS * 1e9
        now = Files.of(Path(path) for path, *_ in self.stamps)
        if not self.large or not settled or now.stamps != self.stamps:
            return
        with suppress(PalimpsestError, OSError, ValueError, RuntimeError):
            entry = {"what": what, "files": self._plain, "value": value}
            write_text(self._entry(what), json.dumps(entry))

    @property
    def _plain(self) -> list[list[Any]]:
        return [list(stamp) for stamp in self.stamps]

    def _entry(self, what: str) -> Path:
        named = json.dumps([what, [path for path, *_ in self.stamps]])
        return folder() / f"{hashlib.sha256(named.encode(errors='replace')).hexdigest()[:32]}.json"


@contextmanager
def late(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what takes steps of progress, which is shown once the work has taken long.

    Args:
        label: names the work.
        total: all its steps.
    """
    start, done, task = time.monotonic(), 0, None
    with ExitStack() as stack:

        def advance(steps: int) -> None:
            nonlocal done, task
            if task is None and time.monotonic() - start > LATE_SECONDS:
                task = stack.enter_context(shown().task(label, total, done))
            done += steps
            if task is not None:
                task.advance(steps)

        yield advance
