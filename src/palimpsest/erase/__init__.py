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
    from palimpsest.erase.fine_tune import FineTune as FineTune
    from palimpsest.erase.fmn import FMN as FMN
    from palimpsest.erase.fmn_correction import FMNCorrection as FMNCorrection
    from palimpsest.erase.gold import Gold as Gold
    from palimpsest.erase.gradient_ascent import GradientAscent as GradientAscent
    from palimpsest.erase.imported import Imported as Imported
    from palimpsest.erase.mace import MACE as MACE
    from palimpsest.erase.negative_prompt import NegativePrompt as NegativePrompt
    from palimpsest.erase.rece import RECE as RECE
    from palimpsest.erase.salun import SalUn as SalUn
    from palimpsest.erase.salun_clip import SalUnCLIP as SalUnCLIP
    from palimpsest.erase.scissorhands import ScissorHands as ScissorHands
    from palimpsest.erase.slug import SLUG as SLUG
    from palimpsest.erase.spm import SPM as SPM
    from palimpsest.erase.srs_me import SRSME as SRSME
    from palimpsest.erase.ssd import SSD as SSD
    from palimpsest.erase.uce import UCE as UCE

OF_CLIP = {
    "slug": "SLUG",
    "fine_tune": "FineTune",
    "gradient_ascent": "GradientAscent",
    "salun_clip": "SalUnCLIP",
    "ssd": "SSD",
}
"""Those that edit a CLIP."""
OF_LLAVA = {"slug": "SLUG"}
"""Those that edit a LLaVA."""
OF_DIFFUSION = {
    "ablation": "ConceptAblation",
    "advunlearn": "AdvUnlearn",
    "cie": "CiE",
    "erasediff": "EraseDiff",
    "esd": "ESD",
    "fmn": "FMN",
    "fmn_correction": "FMNCorrection",
    "gold": "Gold",
    "imported": "Imported",
    "mace": "MACE",
    "negative_prompt": "NegativePrompt",
    "rece": "RECE",
    "salun": "SalUn",
    "scissorhands": "ScissorHands",
    "slug": "SLUG",
    "spm": "SPM",
    "srs_me": "SRSME",
    "uce": "UCE",
}
"""Those that edit a text-to-image model."""

ERASERS = Registry("eraser", "palimpsest.erasers", OF_DIFFUSION | OF_CLIP | OF_LLAVA, __name__)
"""Every eraser by its command-line name."""


def __getattr__(name: str):
    if name in ("CLIP_ERASERS", "LLAVA_ERASERS"):
        raise AttributeError(f"palimpsest.erase.{name} is now palimpsest.erase.ERASERS")
    return ERASERS.attribute(name)
