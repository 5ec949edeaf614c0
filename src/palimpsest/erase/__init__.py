"""The erasers, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.advunlearn import AdvUnlearn as AdvUnlearn
    from palimpsest.erase.esd import ESD as ESD
    from palimpsest.erase.rece import RECE as RECE
    from palimpsest.erase.uce import UCE as UCE

ERASERS = Registry(
    "eraser",
    "palimpsest.erasers",
    {
        "advunlearn": "AdvUnlearn",
        "esd": "ESD",
        "rece": "RECE",
        "uce": "UCE",
    },
    __name__,
)
"""Every eraser by its command-line name."""


def __getattr__(name: str):
    return ERASERS.attribute(name)
