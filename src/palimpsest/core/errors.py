"""Errors of one sentence, and the check of a hyperparameter's least value."""

from __future__ import annotations

from typing import ClassVar


class PalimpsestError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do. Exit code 2."""


class WriteError(PalimpsestError):
    """A file cannot be written. What lies there is whole, and a rerun goes on from it."""


class Settings:
    """Base of dataclasses whose fields have least values."""

    least: ClassVar[dict[str, float]] = {}
    """Least value of each field that has one; a subclass names its own alone."""

    def __post_init__(self) -> None:
        """Refuse a field below its least value."""
        for kind in reversed(type(self).__mro__):
            at_least(self, **vars(kind).get("least", {}))


def at_least(method: object, **least: float) -> None:
    """Refuse a hyperparameter below its least value, or one that is no number.

    Raises:
        PalimpsestError: naming the method, the field, its value and the least one.
    """
    for name, low in least.items():
        value = getattr(method, name)
        if not value >= low:
            kind = type(method).__name__
            raise PalimpsestError(f"{kind}: {name} is {value}; it must be at least {low}")


def check_shares(method: object, *names: str) -> None:
    """Refuse a hyperparameter that is no share, above 0 and at most 1.

    Raises:
        PalimpsestError: naming the method, the field and its value.
    """
    for name in names:
        value = getattr(method, name)
        if not 0 < value <= 1:
            kind = type(method).__name__
            raise PalimpsestError(f"{kind}: {name} is {value}; it must be above 0 and at most 1")
