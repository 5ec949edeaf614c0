"""Methods by name, found without importing them: ours by file, others' by entry point."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

from palimpsest.core.errors import PalimpsestError


@dataclass(frozen=True)
class Registry:
    """The methods of one kind. Nothing heavy is imported until one is asked for."""

    noun: str
    """What its members are called in messages."""
    group: str
    """The entry-point group through which other packages add members."""
    own: dict[str, str]
    """Our members: name, which is that of the file (`_` for `-`) → class name."""
    package: str
    """Where our files lie."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Former names of members → their names."""

    def _theirs(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *(name for name in self._theirs() if name not in self.own)])

    def load(self, name: str) -> type[Any]:
        """Return the method's class.

        Raises:
            PalimpsestError: no method of that name.
        """
        name = self.aliases.get(name, name)
        if name in self.own:
            return getattr(import_module(f"{self.package}.{_file(name)}"), self.own[name])
        theirs = self._theirs()
        if name in theirs:
            return theirs[name].load()
        raise PalimpsestError(f"no {self.noun} {name!r}{nearest(name, list(self))}")

    def attribute(self, name: str) -> type[Any]:
        """Our class of that name, for `from palimpsest.erase import ESD`."""
        for file, kind in self.own.items():
            if kind == name:
                return self.load(file)
        raise AttributeError(f"module {self.package!r} has no attribute {name!r}")

    def summary(self, name: str) -> str:
        """Return the first line of a method's docstring, read without importing it."""
        if name not in self.own:
            return f"from {self._theirs()[name].value}"
        return (ast.get_docstring(self._syntax(name)) or "").split("\n")[0]

    def said(self, name: str, attribute: str) -> bool:
        """Return whether a class of ours says an attribute of its own that holds, likewise."""
        body = self._syntax(name).body if name in self.own else ()
        own = (node for node in body if isinstance(node, ast.AnnAssign))
        said = {ast.unparse(node.target): ast.unparse(node.value) for node in own if node.value}
        return said.get(attribute, "False") != "False"

    def _syntax(self, name: str) -> ast.ClassDef:
        source = files(self.package).joinpath(f"{_file(name)}.py").read_text(encoding="utf-8")
        return next(
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.name == self.own[name]
        )


def _file(name: str) -> str:
    return name.replace("-", "_")


def nearest(name: str, known: list[str]) -> str:
    """Return the end of a refusal: what was probably meant, or what there is."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
