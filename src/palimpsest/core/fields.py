"""The fields of a dataclass, held against their annotations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from inspect import get_annotations
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text, without NUL and in Unicode",
    Path: "a path, without NUL",
    NoneType: "None",
}
"""Type → what a field of that type must be, in words."""


class MisfitError(Exception):
    """A value is none of what an annotation asks for."""


@cache
def asked(kind: type) -> Mapping[str, Any]:
    """Return a dataclass's field → type, without those whose types only type checkers know."""
    found, own = {}, {f.name for f in fields(kind)}
    for base in reversed(kind.__mro__):
        names = vars(sys.modules.get(base.__module__)) if base.__module__ in sys.modules else {}
        for name, said in get_annotations(base).items():
            found.pop(name, None)
            with suppress(Exception):
                one = SimpleNamespace(__annotations__={name: said})
                found |= get_type_hints(one, names) if name in own else {}
    return found


def fitted(value: Any, hint: Any) -> Any:
    """Return a value as an annotation asks for it.

    A bare text where several belong is one of them, a list becomes a tuple, a text a path, and a
    number of NumPy's one of Python's; a whole number may stand where any number may.

    Raises:
        MisfitError: it is none.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or (origin is None and not isinstance(hint, type)):
        return value
    if origin is Literal:
        return _must(value, any(type(value) is type(one) and value == one for one in args))
    if origin in (Union, UnionType):
        for arm in args:
            with suppress(MisfitError):
                return fitted(value, arm)
        raise MisfitError
    if origin is tuple:
        return _several(value, args)
    if hint in (int, float):
        return _number(value, hint)
    if hint is Path and isinstance(value, str):
        value = Path(value)
    if hint in (str, Path):
        return _must(value, isinstance(value, hint) and _sayable(value))
    with suppress(TypeError):  # a protocol, say, which nothing can be held against
        return _must(value, isinstance(value, origin or hint))
    return value


def _must(value: Any, holds: bool) -> Any:
    if not holds:
        raise MisfitError
    return value


def _several(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    open_ended = args[-1:] == (...,)
    if open_ended and args[0] is str and isinstance(value, str):
        value = (value,)
    _must(value, isinstance(value, tuple | list) and (open_ended or len(value) == len(args)))
    kinds = args[:1] * len(value) if open_ended else args
    return tuple(fitted(each, kind) for each, kind in zip(value, kinds, strict=True))


def _number(value: Any, hint: type) -> Any:
    """Return a number; NaN is none, and neither is True."""
    _must(value, not isinstance(value, bool) and value == value)
    if type(value) in (int, hint):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(_must(value, hint is float and isinstance(value, Real)))


def _sayable(value: str | Path) -> bool:
    """Return whether a text can be written down, or a file have such a path."""
    lone = isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value)
    return "\0" not in str(value) and not lone


def refusal(value: Any, hint: Any) -> str:
    """Return what a refused value is and what it must be, in words."""
    choices = [one for one in _leaves(hint) if isinstance(one, str)]
    close = get_close_matches(value, choices, n=1, cutoff=0.5) if isinstance(value, str) else []
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"{short(value)}; it must be {_words(hint)}{meant}"


def _leaves(hint: Any) -> list[Any]:
    """Return the choices of a `Literal`, and of those within a union."""
    arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [one for arm in arms if get_origin(arm) is Literal for one in get_args(arm)]


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, UnionType):
        return ", or ".join(map(_words, args))
    if origin is tuple and args[-1:] == (...,):
        return f"a tuple, each {_words(args[0])}"
    if origin is tuple:
        return f"a tuple of {len(args)}, each {_words(args[0])}"
    return WORDS.get(hint) or f"a {getattr(origin or hint, '__name__', hint)}"
