"""Old names of modules, refused by a sentence that says where each is now."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

MODULES = dict(csv.reader((Path(__file__).parent / "moved.csv").read_text().splitlines()))
"""Module as it was called before the rooms were made → as it is called now; the first row is the
heading."""


SETTINGS = {
    "sampling_steps": ("*.steps",),
    "guidance": ("*.guidance",),
    "batch": ("*.batch",),
    "pictures": ("*.pictures",),
    "retain_pictures": ("retain.pictures",),
    "forget_folder": ("forget.folder",),
    "retain_folder": ("retain.folder",),
    "folder": ("*.folder",),
    "wordings": ("*.wordings",),
    "forget": ("forgotten.source",),
    "retain": ("retained.source",),
    "measure_pictures": ("measure.pictures", "prompts", "pictures"),
    "judged_by": ("measure.by",),
    "least_known": ("measure.least_known",),
    "source": ("data.source",),
    "related": ("data.related",),
    "render_with": ("data.render_with",),
    "allow_target": ("data.allow_target",),
    "pairs": ("interpolation.pairs",),
    "between": ("interpolation.between",),
    "join": ("interpolation.join",),
    "count": ("interpolation.count",),
    "start_step": ("interpolation.start_step",),
    "offset": ("interpolation.offset",),
}
"""A method's setting as it was called → what it may be called now; `*` is any nested setting."""


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
