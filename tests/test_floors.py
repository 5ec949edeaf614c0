"""Who may import whom: the floors of the house, from the street up.

A file may import from its own floor and from those below it, never from one above; methods and
judges on one floor never import one another.
"""

from __future__ import annotations

import ast
from pathlib import Path

import palimpsest

ROOT = Path(palimpsest.__file__).parent

FLOORS: list[tuple[str, ...]] = [
    ("types",),
    (
        "files",
        "registry",
        "metrics",
        "memory",
        "runs",
        "evidence",
        "revival",
        "forgetting",
        "world.vocabulary",
        "world.assets",
        "world.drawings",
    ),
    (
        "hooks",
        "edits",
        "prompts",
        "gallery",
        "concepts",
        "patch",
        "compose",
        "optimise",
        "world.captions",
        "world.render",
    ),
    ("world.data", "world.suite", "themes", "report"),
    ("models", "sources", "captioned", "world.pairs"),
    ("erase", "recover", "judge"),
    (
        "world",
        "attempts",
        "panel",
        "bench",
        "lesson_bench",
        "clip_bench",
        "llava_bench",
        "theme_bench",
        "imagefolder",
        "lora_files",
        "export",
        "imports",
    ),
    ("cli",),
]
"""From the bottom; a name stands for a file or a package and all that lies in it."""

APART = ("erase", "recover", "judge", "report")
"""Packages of which none imports another."""


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


def floor(module: str) -> int:
    fits = [
        (len(name), i)
        for i, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fits, f"{module} stands on no floor: give it one in tests/test_floors.py"
    return max(fits)[1]


def test_no_import_goes_up():
    under_type_checking = {"types"}  # its nouns name each other for the type checker alone
    wrong = [
        f"{module} imports {other}"
        for module, imports in modules().items()
        if module and module not in under_type_checking
        for other in imports
        if floor(other) > floor(module)
    ]
    assert not wrong, wrong


def test_methods_and_judges_do_not_import_one_another():
    wrong = [
        f"{module} imports {other}"
        for module, imports in modules().items()
        for other in imports
        for a in APART
        for b in APART
        if a != b and module.split(".")[0] == a and other.split(".")[0] == b
    ]
    assert not wrong, wrong


def test_the_bottom_floor_is_light():
    import subprocess
    import sys

    code = (
        "import palimpsest, palimpsest.types, palimpsest.registry, palimpsest.runs, sys;"
        "print(*[m for m in ('torch', 'numpy', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
