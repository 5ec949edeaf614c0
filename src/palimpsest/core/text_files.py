"""Text that is read: a person's own files, and those that lie beside a module."""

from __future__ import annotations

from pathlib import Path

from palimpsest.core.errors import PalimpsestError


def beside(module: str, name: str) -> str:
    """Return the text of a file that is shipped in the folder of a module, of its `__file__`."""
    return Path(module).with_name(name).read_text(encoding="utf-8")


def read_utf8(path: Path) -> str:
    """Read a text file.

    Raises:
        PalimpsestError: no such file, or it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PalimpsestError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PalimpsestError(f"{path}: cannot be read as UTF-8 text ({error})") from error
