"""Files and folders that appear whole or not at all.

Each is made under a temporary name that nobody else can have, brought to the disk, and given its
own name in one step, `commit`. What lies there already is looked at or replaced, never written
through: a link in an output's place goes, and what it points to stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from palimpsest.core.errors import WriteError
from palimpsest.core.trouble import not_written

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the system says when there is no more room."""
TEMPORARY = re.compile(r"\..*-[0-9a-f]{16}\.part", re.DOTALL)
"""What `temporary` calls a file."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a new empty file beside `path`; it becomes `path` when the block ends well.

    Raises:
        WriteError: the file cannot be written; the temporary one is gone, an older `path` stays.
    """
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = temporary(path)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = part.stat().st_mode  # a writer may put a file of another mode in its place
        try:
            yield part
            part.chmod(mode)
            commit(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def within(part: Path) -> Iterator[Path]:
    """Yield a file in a temporary folder beside `part`, which becomes `part` in the end.

    For writers that make temporary files of their own: these lie in the folder, too.
    """
    folder = temporary(part)
    folder.mkdir()
    try:
        yield folder / part.name
        os.replace(folder / part.name, part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which becomes `path` when the block ends well.

    What else lies in an older `path` lies in the new one, too.

    Raises:
        WriteError: it cannot be written; the temporary one is gone, an older `path` stays.
    """
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = temporary(path)
        part.mkdir()
        try:
            yield part
            become(part, path)
        except WriteError as error:  # of a file in it, by the name that it would have had
            raise WriteError(str(error).replace(str(part), str(path))) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def become(part: Path, path: Path) -> None:
    """Give a finished folder its own name; what else lies in an older one comes along."""
    _usual_modes(part)
    if path.is_dir():
        _take_along(path, part)
    commit(part, path)


def _usual_modes(folder: Path) -> None:
    """Give the files in a new folder the mode that files here have; some libraries hide theirs."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def temporary(path: Path) -> Path:
    """Return a name beside `path` that nothing else has."""
    return path.with_name(f".{path.name[:60]}-{secrets.token_hex(8)}.part")


def sweep(folder: Path) -> None:
    """Take away temporary files that stopped processes left in a folder of ours that is held."""
    for path in [*folder.rglob(".*.part")] if folder.is_dir() else ():
        if path.is_symlink() or not TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def commit(part: Path, path: Path) -> None:
    """Bring a finished file or folder to the disk, and give it its own name in one step."""
    _bring_to_disk(part, deep=True)
    if path.is_dir() and any(path.iterdir()):
        _exchange(part, path)
    else:
        os.replace(part, path)
    _bring_to_disk(path.parent)


def _bring_to_disk(path: Path, deep: bool = False) -> None:
    """Wait until a file, or the names in a folder, lie on the disk; `deep`: all that is in it."""
    for inner in path.iterdir() if deep and path.is_dir() and not path.is_symlink() else ():
        _bring_to_disk(inner, deep)
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def _take_along(old: Path, new: Path) -> None:
    """Give what lies in an old folder, and in no new one, a name in the new one, too."""
    for path in old.iterdir():
        there = new / path.name
        if path.is_dir() and not path.is_symlink():
            there.mkdir(exist_ok=True)
            _take_along(path, there)
        elif not os.path.lexists(there):
            try:
                os.link(path, there, follow_symlinks=False)
            except (OSError, NotImplementedError):  # a file system without hard links
                shutil.copy2(path, there, follow_symlinks=False)


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change their names; in one step where the system can."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), swap) == 0:
            return
    aside = temporary(old)
    os.replace(old, aside)
    os.replace(new, old)
    os.replace(aside, new)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in one sentence why something cannot be written."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        null = isinstance(error, ValueError) and "null" in str(error)
        if not (isinstance(error, OSError) or null or not_written(error)):
            raise
        raise WriteError(f"{path}: cannot be written ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Why the system or a library refused to write, and what to do if that is plain."""
    said, number = str(error), getattr(error, "errno", None)
    short = "requested and" in said  # NumPy's words for a file that ends too early
    full = short or "unexpected pos" in said or any(os.strerror(code) in said for code in FULL)
    if number in FULL or (full and number is None):
        return "the disk is full; make room and run the same command to go on"
    return getattr(error, "strerror", None) or said.splitlines()[0]


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        WriteError: it cannot be written; nothing half-written stays.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a log that is kept while its work lasts; no link is written through.

    Raises:
        WriteError: it cannot be written.
    """
    with _told(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def remove(folder: Path) -> None:
    """Take a folder of ours away, in one step: broken off, no half of it bears its name."""
    aside = temporary(folder)
    with suppress(OSError):
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
