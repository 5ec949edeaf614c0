"""One process at a time: the others wait, and say so."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from palimpsest.core.errors import WriteError

Tell = Callable[[str], None]
"""Takes a sentence for the person who waits."""


@contextmanager
def folder_lock(folder: Path, tell: Tell) -> Iterator[None]:
    """Hold a folder of ours against other processes, on whatever machine that shares the disk.

    The lock is the empty file `.NAME.lock` beside it, which stays: the system opens it again when
    its process ends, in whatever way.

    Raises:
        WriteError: no lock can be made there.
    """
    with _locked(lock_path(folder), folder, tell):
        yield


def lock_path(folder: Path) -> Path:
    """Return the file that a folder of ours is held by."""
    return folder.with_name(f".{folder.name[:200]}.lock")


@contextmanager
def output_lock(out: Path, tell: Tell) -> Iterator[None]:
    """Hold a file or a folder that a person named against other processes of this machine.

    The lock lies among the temporary files, so that nothing is left beside `out`.

    Raises:
        WriteError: no lock can be made there.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:32]
    place = Path(tempfile.gettempdir(), f"palimpsest-locks-{user}", f"{name}.lock")
    with _locked(place, out, tell):
        yield


@contextmanager
def _locked(place: Path, path: Path, tell: Tell) -> Iterator[None]:
    lock = FileLock(place)
    try:
        if place.is_symlink() or place.parent.is_symlink():
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
