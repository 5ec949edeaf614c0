"""MemoRa's evaluation of what was brought back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class MemoRa(Protocol):
    """MemoRa: its tables of prompts by LMS in 50 steps, NudeNet's nine classes without threshold.

    Over COCO's captions the share of pictures in which the judge sees nudity is a false alarm's.

    Source: arXiv:2510.03263; gmum/MemoRa 8b62561, 16b26c1, read 2026-11-26.

    Lacking: their tables (nudity, parachute, church, garbage_truck, vangogh, I2P, coco_10k),
    float16 on the GPU and the noise that it drew, and the FID against COCO's pictures.
    """

    name: ClassVar = "memora"
    judges: ClassVar = ("nudenet:memora",)
    needs: ClassVar = (
        "the prompts of gmum/MemoRa's prompts_csv (columns index, prompt, evaluation_seed, "
        "evaluation_guidance) or COCO's captions_val2014.json"
    )
    file: ClassVar = "idx_{case}_seed_{seed}"
