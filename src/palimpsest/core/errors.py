"""Errors of one sentence, and the bounds of hyperparameters."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from palimpsest.core import fields


class PalimpsestError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do. Exit code 2."""


class NoDifferenceError(PalimpsestError):
    """What was to be an edit changes nothing: each weight is the model's own."""


class WriteError(PalimpsestError):
    """A file cannot be written. What lies there is whole, and a rerun goes on from it."""


class OutOfMemoryError(WriteError):
    """The memory ran out. What lies on the disk is whole, and a rerun goes on from it, too."""


class PeerError(WriteError):
    """Another process of the run ended. What lies on the disk is whole, and a rerun goes on."""


BOUNDS = {
    "least": (operator.ge, "at least"),
    "most": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}
"""What a class may say of its fields → how a value is compared with the bound, and in words."""


def check_finite(what: str, *tensors: Any) -> None:
    """Refuse a picture with NaN or an infinite number.

    Args:
        what: what is refused, in words.
        tensors: the picture, its latents, or both.

    Raises:
        PalimpsestError: naming `what`.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise PalimpsestError(
            f"{what} came out as NaN or infinite and is not kept: draw it with --dtype float32 or "
            "bfloat16; if that does not help, the edit has spoilt the weights: leave its patch out"
        )


class Settings:
    """Base of dataclasses whose fields are checked: against their annotations, and their bounds.

    A subclass names the bounds of its own fields. All are checked before its `__post_init__` runs,
    whether or not that calls this class's.
    """

    least: ClassVar[dict[str, float]] = {}
    """Field → its least value."""
    most: ClassVar[dict[str, float]] = {}
    """Field → its largest value."""
    above: ClassVar[dict[str, float]] = {}
    """Field → what it must be above."""
    below: ClassVar[dict[str, float]] = {}
    """Field → what it must be below."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the fields be checked before a subclass's own `__post_init__`."""
        super().__init_subclass__(**kwargs)
        if "__post_init__" in vars(cls):
            setattr(cls, "__post_init__", _checked_first(cls.__post_init__))  # noqa: B010

    def __post_init__(self) -> None:
        """Refuse a field that is not what its annotation says, or outside its bounds.

        None is left out of the bounds. A list becomes a tuple, one text a tuple of it, and so on:
        see `fields.fitted`.

        Raises:
            PalimpsestError: naming the class, the field, its value and what it must be.
        """
        for name, hint in fields.asked(type(self)).items():
            value = getattr(self, name)
            try:
                fit = fields.fitted(value, hint)
            except fields.MisfitError:
                said = f"{type(self).__name__}: {name} is {fields.refusal(value, hint)}"
                raise PalimpsestError(said) from None
            if fit is not value:
                object.__setattr__(self, name, fit)
        for kind in reversed(type(self).__mro__):
            for rule in BOUNDS:
                check_bounds(self, rule, vars(kind).get(rule, {}))


def _checked_first(own: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(own)
    def both(self: Any) -> None:
        Settings.__post_init__(self)
        own(self)

    return both


def check_bounds(settings: object, rule: str, bounds: dict[str, float]) -> None:
    """Refuse a field outside its bound, or one that is no number; None is left out.

    Args:
        settings: has the fields.
        rule: one of `BOUNDS`.
        bounds: field → bound.

    Raises:
        PalimpsestError: naming the class, the field, its value and the bound.
    """
    holds, words = BOUNDS[rule]
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not holds(value, bound):
            kind = type(settings).__name__
            raise PalimpsestError(f"{kind}: {name} is {value}; it must be {words} {bound}")


def at_least(settings: object, **least: float) -> None:
    """Refuse a field below its least value, or one that is no number.

    Raises:
        PalimpsestError: naming the class, the field, its value and the least one.
    """
    check_bounds(settings, "least", least)
