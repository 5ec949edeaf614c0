"""The erasers, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.core.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.ablation import ConceptAblation as ConceptAblation
    from palimpsest.erase.advunlearn import AdvUnlearn as AdvUnlearn
    from palimpsest.erase.cie import CiE as CiE
    from palimpsest.erase.erasediff import EraseDiff as EraseDiff
    from palimpsest.erase.esd import ESD as ESD
    from palimpsest.erase.fmn import FMN as FMN
    from palimpsest.erase.gold import Gold as Gold
    from palimpsest.erase.mace import MACE as MACE
    from palimpsest.erase.negative_prompt import NegativePrompt as NegativePrompt
    from palimpsest.erase.rece import RECE as RECE
    from palimpsest.erase.salun import SalUn as SalUn
    from palimpsest.erase.scissorhands import ScissorHands as ScissorHands
    from palimpsest.erase.slug import SLUG as SLUG
    from palimpsest.erase.spm import SPM as SPM
    from palimpsest.erase.srs_me import SRSME as SRSME
    from palimpsest.erase.uce import UCE as UCE

ERASERS = Registry(
    "eraser",
    "palimpsest.erasers",
    {
        "ablation": "ConceptAblation",
        "advunlearn": "AdvUnlearn",
        "cie": "CiE",
        "erasediff": "EraseDiff",
        "esd": "ESD",
        "fmn": "FMN",
        "gold": "Gold",
        "mace": "MACE",
        "negative_prompt": "NegativePrompt",
        "rece": "RECE",
        "salun": "SalUn",
        "scissorhands": "ScissorHands",
        "slug": "SLUG",
        "spm": "SPM",
        "srs_me": "SRSME",
        "uce": "UCE",
    },
    __name__,
)
"""Every eraser by its command-line name."""


def __getattr__(name: str):
    return ERASERS.attribute(name)
