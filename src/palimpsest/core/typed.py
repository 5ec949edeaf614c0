"""JSON as values of declared types, and back: what a file says is checked where it is read."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = {int: 2**63 - 1, float: 1e300}
"""No number that a file holds is farther from 0."""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", tuple: "list"}
"""What JSON belongs to a type, in words."""


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: dataclasses without their defaults, NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: (f, getattr(value, f.name)) for f in fields(value)}
        return {name: plain(v) for name, (f, v) in own.items() if not _is_default(f, v)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def jsonable(settings: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return named settings with their paths as text: a `dict_factory` of `asdict`."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in settings}


def _is_default(f: Any, value: Any) -> bool:
    default = f.default if f.default_factory is MISSING else f.default_factory()
    return default is not MISSING and (value == default or (value != value and default != default))


def build(kind: Any, data: Any) -> Any:
    """Return JSON as a value of a type: the inverse of `plain`.

    Args:
        kind: str, int, float, bool, a dataclass, `Literal` of texts, a dict by texts, a tuple of
            any length, each of such; one of them or None; or `Any`, which is not looked into.
        data: what was read. null is NaN where a number belongs, and else leaves a field out.

    Raises:
        TypeError: it is none, and what and where it is, in words.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and isinstance(data, str) and data in inner):
        return data
    if origin in (Union, UnionType):
        return None if data is None else build(inner[0], data)
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(build(inner[0], each) for each in data)
    if origin is dict and isinstance(data, dict):
        return {name: _part(inner[1], each, name) for name, each in data.items()}
    if is_dataclass(kind) and isinstance(data, dict):
        return _object(kind, data)
    if (value := _number(kind, data)) is not None:
        return value
    if kind is str and type(data) is str:
        return data
    if kind is bool and type(data) in (bool, int) and data in (0, 1):
        return bool(data)
    wanted = ", ".join(inner) if origin is Literal else WORDS.get(origin or kind, "object")
    raise TypeError(f"{reprlib.repr(data)} is no {wanted}")


def _number(kind: Any, data: Any) -> float | None:
    """Return a number of a type; None if it is none, or too large."""
    if kind is float and data is None:
        return math.nan
    fits = {float: (int, float), int: (int,)}.get(kind, ())
    return kind(data) if type(data) in fits and not abs(data) > LARGEST[kind] else None


def _object(kind: Any, data: dict[str, Any]) -> Any:
    """Return a dataclass of what stands under the names of its fields; other names are left out."""
    found, hints = {}, _hints(kind)
    for f in fields(kind):
        if data.get(f.name) is not None or (f.name in data and hints[f.name] is float):
            found[f.name] = _part(hints[f.name], data[f.name], f.name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise TypeError(f"there is no {f.name!r}")
    return kind(**found)


def _part(kind: Any, data: Any, name: str) -> Any:
    try:
        return build(kind, data)
    except TypeError as error:
        raise TypeError(f"{reprlib.repr(name)[1:-1]}: {error}") from None


_hints = cache(get_type_hints)
