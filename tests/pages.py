"""The pages of the docs as tests read them: their fences, and their examples as modules."""

from __future__ import annotations

import glob
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from palimpsest.cli import main
from palimpsest.core import registry

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def own(what: str) -> Path:
    """The page that shows how to write one's own."""
    return ROOT / "docs" / f"write-your-own-{what}.md"


def fences(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


def walk(commands: str, more: Mapping[str, str]) -> None:
    """Run a page's commands as a shell would, each with the flags that make it take seconds.

    Args:
        commands: a line each; patterns of files are filled in, and remarks left out.
        more: of a verb, or of a group and its verb, what stands behind its commands in addition.
    """
    for command in commands.splitlines():
        program, *words = shlex.split(command, comments=True)
        if program == "palimpsest":
            verb = " ".join(words[: 2 if words[0] in ("patch", "world") else 1])
            words = [found for word in words for found in sorted(glob.glob(word)) or [word]]
            assert main([*words, *more.get(verb, "").split()]) == 0, command


def as_module(page: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's one python fence as a file in `folder`, imported under the page's name for it."""
    (source,) = fences(page, "python")
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def register(page: Path, group: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register what the page's toml fence names as an installed package would; its name."""
    (text,) = fences(page, "toml")
    ((name, value),) = tomllib.loads(text)["project"]["entry-points"][group].items()
    entry = EntryPoint(name, value, group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] * (group == entry.group))
    return name
