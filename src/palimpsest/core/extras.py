"""Packages of an extra, which need not be installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from palimpsest.core.errors import PalimpsestError


def optional(module: str, extra: str) -> ModuleType:
    """Import a package that an extra installs.

    Raises:
        PalimpsestError: it cannot be imported; says which extra to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(module, extra, error) from error


def optional_file(module: str, name: str, extra: str) -> Path:
    """Find a file of a package that an extra installs, without importing the package.

    Raises:
        PalimpsestError: there is no such package, or no such file in it; says which extra to
            install.
    """
    spec = find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, name)).is_file():
            return file
    raise _missing(module, extra, f"no file {name}" if spec else "no such package")


def _missing(module: str, extra: str, why: object) -> PalimpsestError:
    return PalimpsestError(
        f"{module} is not usable here ({why}): pip install 'palimpsest-ml[{extra}]'"
    )
