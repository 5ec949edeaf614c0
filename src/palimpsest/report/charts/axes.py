"""Axes: where a value lies, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

THIN = "\u202f"
ZERO = 8.0
"""Per cent of a logarithmic axis that lie between 0 and its first decade, if it has a 0."""
PAD = 0.04
"""Share of its span that an axis leaves free on each side."""
MOST = 5
"""Spaces between ticks, at most."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """What an axis shows. A logarithmic one takes 0, at its end, but nothing below."""

    title: str | Markup = ""
    low: float | None = None
    """Its lower end; found from the values if None."""
    high: float | None = None
    """Its upper end; found from the values if None."""
    log: bool = False
    unit: str = ""
    """Behind its numbers, such as `%`."""

    def over(self, values: Iterable[float]) -> Scale:
        """Return the scale on which all finite values have a place.

        Raises:
            ValueError: a value below 0 on a logarithmic axis.
        """
        found = sorted(v for v in values if math.isfinite(v)) or [0.0, 1.0]
        if self.log and found[0] < 0:
            raise ValueError(f"{found[0]} has no place on a logarithmic axis")
        zero = self.log and found[0] == 0
        if self.log:
            found = [math.log10(v) for v in found if v > 0] or [0.0, 1.0]
        span = found[-1] - found[0] or abs(found[0]) or 1.0
        free = PAD * span if found[-1] > found[0] else span / 2
        low, high = (math.log10(v) if self.log and v else v for v in (self.low, self.high))
        low = found[0] - free if low is None else low
        high = found[-1] + free if high is None else high
        alone = found[0] == found[-1] and not zero and self.low is None and self.high is None
        return Scale(self, low, high, zero, alone)


@dataclass(frozen=True)
class Scale:
    """An axis with its ends, which are decadic logarithms if it is logarithmic."""

    axis: Axis
    low: float
    high: float
    zero: bool = False
    """Whether 0 has a place on a logarithmic axis."""
    alone: bool = False
    """Whether all values are one, in the middle; only it is written then."""

    def place(self, value: float) -> float:
        """Return where a value lies, in per cent of the axis's length, no further than its ends."""
        first = ZERO if self.zero else 0.0
        if self.axis.log and value <= 0:
            return 0.0
        value = math.log10(value) if self.axis.log else value
        share = (value - self.low) / (self.high - self.low)
        return round(first + (100 - first) * min(max(share, 0.0), 1.0), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of the values that are written beside the axis."""
        middle = (self.low + self.high) / 2
        values = _decades(self.low, self.high) if self.axis.log else []
        if self.alone:
            values = [10**middle if self.axis.log else middle]
        elif len(values) < 2:
            low, high = (10**v if self.axis.log else v for v in (self.low, self.high))
            values = _round(low, high)
        values = [0.0] * self.zero + values
        for digits in range(3, 18):
            texts = [written(v, self.axis.unit, digits) for v in values]
            if len(set(texts)) == len(values):
                break
        return [(self.place(v), text) for v, text in zip(values, texts, strict=True)]


def written(value: float, unit: str = "", digits: int = 3) -> str:
    """Return a number as it stands beside an axis: `1,000`, `25 %`, `10⁻⁵`; `–` of none.

    More `digits` than three tell numbers apart that lie close together, far from 0.
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if value and not 1e-3 <= size < 1e6:
        power = math.floor(math.log10(size) + 1e-9)
        digit = f"{value / 10**power:.{digits}g}"
        times = "" if digit == "1" else "-" if digit == "-1" else f"{digit}·"
        text = f"{times}10{str(power).translate(SUPERSCRIPTS)}"
    else:
        text = f"{value:,.{digits + 3}g}" if size < 1e5 else f"{value:,.{digits - 3}f}"
    return f"{text}{THIN}{unit}" if unit else text


def _round(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten, as close as `MOST` allows."""
    rough = (high - low) / MOST
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return list(dict.fromkeys(float(f"{i * step:.15g}") for i in range(first, last + 1)))


def _decades(low: float, high: float) -> list[float]:
    """Return powers of ten between two of them, with 2 and 5 times each over a short span."""
    span = high - low
    every = max(1, math.ceil(span / MOST))
    digits = (1, 2, 5) if span <= MOST / 3 else (1, 3) if span <= MOST / 2 else (1,)
    powers = range(math.floor(low), math.floor(high) + 1)
    values = [d * 10.0**p for p in powers if p % every == 0 for d in digits]
    return [v for v in values if low - 1e-9 <= math.log10(v) <= high + 1e-9]
