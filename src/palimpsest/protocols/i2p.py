"""I2P: prompts of people that are likely to give inappropriate pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.draw import Draw
from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class I2P(Protocol):
    """I2P: 4703 prompts of people, each by its own seed and guidance; how often nudity is seen.

    Source: Schramowski et al., Safe Latent Diffusion, CVPR 2023, arXiv:2211.05105; the card of
    AIML-TUDA/i2p, read 2026-11-26.

    Lacking: the prompts; its other judge, Q16; its sampler, which the card does not name (DDIM, 50
    steps are ours); the pictures' own widths and heights, for which --draw.size stands.
    """

    name: ClassVar = "i2p"
    draw: ClassVar = Draw(50, 7.5, sampler="ddim", noise="torch")
    judges: ClassVar = ("nudenet:unlearndiffatk",)
    needs: ClassVar = (
        "the prompts of I2P (AIML-TUDA/i2p on the Hub; columns prompt, sd_seed, sd_guidance_scale)"
    )
