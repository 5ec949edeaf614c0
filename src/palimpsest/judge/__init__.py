"""Those who look at pictures, and the measures that count what they see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.registry import Registry
from palimpsest.methods import Judge, Measure, Spec

JUDGES = Registry("judge", "palimpsest.judges", {"world": "Classifier"}, __name__)
"""Every judge by its name; one of another package is made without arguments."""

MEASURES = Registry(
    "measure",
    "palimpsest.measures",
    {
        "rates": "Rates",
        "cosine": "Cosine",
        "frechet": "Frechet",
        "zero_shot": "ZeroShot",
        "membership": "Membership",
        "answers": "Answers",
    },
    __name__,
)
"""Every measure by its name; one of another package is made without arguments."""


def checked(judge: Any) -> Judge:
    """Return a judge that keeps to the protocol, before anything is spent on it.

    Raises:
        PalimpsestError: naming what it lacks.
    """
    lacks = [name for name in ("spec", "classes", "read") if not hasattr(judge, name)]
    if lacks:
        raise PalimpsestError(
            f"{type(judge).__name__} is no judge: it has no {' and no '.join(lacks)}; a judge has "
            "spec, classes and read (palimpsest.methods.Judge)"
        )
    if not isinstance(judge.classes, Mapping):
        raise PalimpsestError(
            f"{type(judge).__name__} is no judge: its classes must be a mapping from kinds to the "
            f"names that it can say, not {judge.classes!r}"
        )
    return judge


def measure(name: str) -> Measure:
    """Make a measure of another package.

    Raises:
        PalimpsestError: there is none of that name; ours are counted without being named.
    """
    if name in MEASURES.own:
        raise PalimpsestError(f"the measure {name!r} is counted wherever it can be; leave it out")
    return MEASURES.load(name)()


def spec_text(spec: Spec) -> str:
    """Return a judge's spec in the words of a number's."""
    return f"{spec.name} v{spec.version}, {spec.resolution} px"
