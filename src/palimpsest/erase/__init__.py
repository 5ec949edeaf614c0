"""The erasers, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.esd import ESD as ESD
    from palimpsest.erase.mace import MACE as MACE
    from palimpsest.erase.negative_prompt import NegativePrompt as NegativePrompt
    from palimpsest.erase.spm import SPM as SPM
    from palimpsest.erase.uce import UCE as UCE

OWN = {
    "esd": "ESD",
    "mace": "MACE",
    "negative_prompt": "NegativePrompt",
    "spm": "SPM",
    "uce": "UCE",
}
ERASERS = Registry("eraser", "palimpsest.erasers", OWN, __name__)
"""Every eraser by its command-line name."""


def __getattr__(name: str):
    return ERASERS.attribute(name)
