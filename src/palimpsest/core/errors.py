"""Errors of one sentence, and the bounds of hyperparameters."""

from __future__ import annotations

import operator
from typing import Any, ClassVar


class PalimpsestError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do. Exit code 2."""


class WriteError(PalimpsestError):
    """A file cannot be written. What lies there is whole, and a rerun goes on from it."""


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
    """Base of dataclasses whose fields have bounds; a subclass names those of its own fields."""

    least: ClassVar[dict[str, float]] = {}
    """Field → its least value."""
    most: ClassVar[dict[str, float]] = {}
    """Field → its largest value."""
    above: ClassVar[dict[str, float]] = {}
    """Field → what it must be above."""
    below: ClassVar[dict[str, float]] = {}
    """Field → what it must be below."""

    def __post_init__(self) -> None:
        """Refuse a field outside its bounds, or one that is no number; None is left out.

        Raises:
            PalimpsestError: naming the class, the field, its value and the bound.
        """
        for kind in reversed(type(self).__mro__):
            for rule in BOUNDS:
                check_bounds(self, rule, vars(kind).get(rule, {}))


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
