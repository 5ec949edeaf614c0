"""One process at a time: the others wait, and say so."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from palimpsest.core.errors import WriteError


@contextmanager
def held(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold what is to be written, a file or a folder, against other processes.

    The lock is the empty file `.NAME.lock` beside it, which stays: the system opens it again when
    its process ends, in whatever way.

    Args:
        path: need not exist.
        tell: takes a sentence, if another process holds it and this one waits.

    Raises:
        WriteError: no lock can be made there.
    """
    place = path.with_name(f".{path.name[:80]}.lock")
    lock = FileLock(place)
    try:
        if place.is_symlink():
            raise OSError(errno.ELOOP, "a link lies in its place")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"{path}: another process is at work on it; waiting until it is done")
            lock.acquire()
    except (OSError, ValueError, NotImplementedError) as error:
        raise WriteError(f"{place}: cannot be locked ({error})") from error
    try:
        yield
    finally:
        lock.release()
