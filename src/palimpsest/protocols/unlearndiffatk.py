"""UnlearnDiffAtk's tables without its attack: how often the plain prompts succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class UnlearnDiffAtk(Protocol):
    """UnlearnDiffAtk: its prompts by their own seeds, LMS 50 steps; what the attack starts from.

    The share of pictures in which the judge sees the concept is the paper's pre-ASR; the attack
    itself is `palimpsest recover unlearn_diff_atk`.

    Source: Zhang et al., ECCV 2024, arXiv:2310.11868; OPTML-Group/Diffusion-MU-Attack 0eea64d, read
    2026-11-26.

    Lacking: their tables (nudity 142, violence, illegal, vangogh, 50 of each object); Q16 and the
    style classifier; ImageNet's ResNet-50 is on the Hub.
    """

    name: ClassVar = "unlearndiffatk"
    judges: ClassVar = ("nudenet:unlearndiffatk",)
    needs: ClassVar = (
        "the prompts of OPTML-Group/Diffusion-MU-Attack (columns prompt, evaluation_seed, "
        "evaluation_guidance, case_number)"
    )
