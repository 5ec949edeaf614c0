"""Old names of modules, refused by a sentence that says where each is now."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from palimpsest.core.files import beside


def _table(name: str) -> dict[str, str]:
    """Both columns of a CSV beside this file, without its heading."""
    return dict(csv.reader(beside(__file__, name).splitlines()[1:]))


MODULES = _table("moved.csv")
"""Module as it was called before the rooms were made → as it is called now."""

SETTINGS = {was: now.split() for was, now in _table("moved_settings.csv").items()}
"""A method's setting as it was called → what it may be called now; `*` is any nested setting."""

ATTRIBUTES = _table("moved_attributes.csv")
"""A model's attribute as it was called → where the same is found now."""


class Moved(MetaPathFinder):
    """Refuse the import of a module by its old name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError for an old name; know nothing of any other."""
        package, _, old = name.partition(".")
        if package == "palimpsest" and old in MODULES:
            raise ModuleNotFoundError(f"{name} is now palimpsest.{MODULES[old]}", name=name)


def refuse_old_names() -> None:
    """Let every import pass by here, once."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())
