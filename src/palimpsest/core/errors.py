"""Errors of one sentence, and the check of a hyperparameter's least value."""

from __future__ import annotations


class PalimpsestError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do. Exit code 2."""


class WriteError(PalimpsestError):
    """A file cannot be written. What lies there is whole, and a rerun goes on from it."""


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
