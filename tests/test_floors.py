"""Who may import whom: every room stands on a floor and imports from lower floors alone.

Rooms on one floor never import one another, so that there is no circle.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import palimpsest
from palimpsest.core.moved import MODULES

ROOT = Path(palimpsest.__file__).parent

FLOORS: list[tuple[str, ...]] = [
    ("core",),
    ("patch", "metrics", "data"),
    ("methods",),
    ("world",),
    ("models", "protocols"),
    ("toolbox",),
    ("exchange",),
    ("erase", "recover", "judge"),
    ("runs", "world.make", "train"),
    ("report",),
    ("cli",),
    ("__main__",),
]
"""From the bottom; a name stands for a file or a package and all that lies in it."""


def modules() -> dict[str, set[str]]:
    """Every module of the package with the modules of the package that it imports."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__")
        imports = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("palimpsest"):
                module = (node.module or "").removeprefix("palimpsest").lstrip(".")
                for alias in node.names:
                    part = f"{module}.{alias.name}".lstrip(".")
                    there = ROOT.joinpath(*part.split("."))
                    is_module = there.with_suffix(".py").exists() or there.is_dir()
                    imports.add(part if is_module else module)
            elif isinstance(node, ast.Import):
                imports |= {
                    alias.name.removeprefix("palimpsest.")
                    for alias in node.names
                    if alias.name.startswith("palimpsest.")
                }
        found[name.strip(".")] = imports - {""}
    return found


def room(module: str) -> str:
    """The name in `FLOORS` that a module belongs to."""
    names = [name for names in FLOORS for name in names]
    fits = [name for name in names if module == name or module.startswith(name + ".")]
    assert fits, f"{module} belongs to no room: give it one in tests/test_floors.py"
    return max(fits, key=len)


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if room(module) in names)


def test_every_import_goes_down():
    wrong = [
        f"{module} imports {other}"
        for module, imports in modules().items()
        if module
        for other in imports
        if room(other) != room(module) and floor(other) >= floor(module)
    ]
    assert not wrong, wrong


def test_three_files_stand_on_the_top_level():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "methods.py"}


def test_the_bottom_floor_is_light():
    import subprocess
    import sys

    heavy = ("torch", "numpy", "diffusers", "transformers")
    code = (
        "import palimpsest, palimpsest.methods, palimpsest.core.registry, palimpsest.runs.folder\n"
        f"import sys; print(*[m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("old", [name for name in MODULES if name != "was"])
def test_an_old_name_is_refused_by_a_sentence_with_the_new_one(old: str):
    with pytest.raises(ModuleNotFoundError, match=f"palimpsest.{old} is now palimpsest"):
        importlib.import_module(f"palimpsest.{old}")
    importlib.import_module(f"palimpsest.{MODULES[old]}")
