"""The erasers, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.esd import ESD as ESD
    from palimpsest.erase.fmn import FMN as FMN
    from palimpsest.erase.uce import UCE as UCE

ERASERS = Registry(
    "eraser", "palimpsest.erasers", {"esd": "ESD", "fmn": "FMN", "uce": "UCE"}, __name__
)
"""Every eraser by its command-line name."""


def __getattr__(name: str):
    return ERASERS.attribute(name)
