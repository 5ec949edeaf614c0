"""Files and folders that a command writes: refused early, and written whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.cli.console import warn
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.locks import output_lock

if TYPE_CHECKING:
    from palimpsest.cli.tree import Call
    from palimpsest.patch import Patch


def check_file(out: Path, force: bool, what: str = "patch") -> None:
    """Refuse early a file that exists or cannot be made.

    Raises:
        PalimpsestError: `out` exists and `force` is not set, is a folder, or lies under a file.
    """
    if out.is_dir():
        raise PalimpsestError(f"{out}: a folder; name the {what} file to write with --out")
    if out.exists() and not force:
        raise PalimpsestError(f"{out}: exists; use --force to overwrite it, or another --out")
    _refuse_under_file(out, out.resolve().parents)


def _refuse_under_file(out: Path, places: Iterable[Path]) -> None:
    above = [place for place in places if place.is_file()]
    if above:
        raise PalimpsestError(f"{out}: {above[0]} is a file; choose another place with --out")


def write_patch(patch: Patch, out: Path, half: bool = False) -> None:
    """Write a patch file; what half precision costs is said on stderr."""
    lost = patch.save(out, half)
    if lost:
        warn(f"half precision moves the shifts by up to {lost:.2g}")


def runs_folder(root: Path) -> None:
    """Refuse early a place where no folder can be.

    Raises:
        PalimpsestError: it, or something above it, is a file.
    """
    for place in (root, *root.resolve().parents):
        if place.is_file():
            raise PalimpsestError(
                f"{root}: cannot be made a folder ({place} is a file); choose another place "
                "with --runs"
            )


def check_out(out: Path, force: bool, forcible: bool = True) -> None:
    """Refuse early an output folder that is in use or cannot be made.

    Args:
        out: the folder.
        force: whether it may hold something.
        forcible: whether --force would help.

    Raises:
        PalimpsestError: `out` holds something and `force` is not set, or lies under a file.
    """
    _refuse_under_file(out, (out, *out.resolve().parents))
    if out.is_symlink():
        raise PalimpsestError(f"{out}: a link; name the folder itself, or another, with --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        way = "use --force to write into it, or " if forcible else ""
        raise PalimpsestError(f"{out}: not empty; {way}choose another place with --out")


def lock_file(call: Call, out: Path, force: bool, what: str = "patch") -> None:
    """Hold a file that a command writes until it is done, refused early as by `check_file`.

    Raises:
        PalimpsestError: as of `check_file`, before or after another process was waited for.
    """
    check_file(out, force, what)
    call.until_done.enter_context(output_lock(out, warn))
    check_file(out, force, what)


def lock_folder(call: Call, out: Path, force: bool, forcible: bool = True) -> None:
    """Hold a folder that a command writes until it is done, refused early as by `check_out`.

    Raises:
        PalimpsestError: as of `check_out`, before or after another process was waited for.
    """
    check_out(out, force, forcible)
    call.until_done.enter_context(output_lock(out, warn))
    check_out(out, force, forcible)
