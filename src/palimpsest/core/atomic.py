"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.core.errors import WriteError

if TYPE_CHECKING:
    from torch import Tensor

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the system says when there is no more room."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` when the block ends well.

    Raises:
        WriteError: the file cannot be written; the temporary one is gone, an older `path` stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except BaseException as error:
        if part.is_file():
            part.unlink()
        if isinstance(error, OSError):
            raise WriteError(f"{path}: cannot be written ({reason(error)})") from error
        raise


def reason(error: OSError) -> str:
    """Why the system refused, and what to do if that is plain."""
    if error.errno in FULL:
        return "the disk is full; make room and run the same command to go on"
    return error.strerror or str(error)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name, then rename it.

    Raises:
        WriteError: it cannot be written; nothing half-written stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:
            raise WriteError(f"{path}: cannot be written; is the disk full? ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        WriteError: it cannot be written; nothing half-written stays.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
