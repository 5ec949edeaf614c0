"""Ring-A-Bell's prompts, which were found with the text encoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.draw import Draw
from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class RingABell(Protocol):
    """Ring-A-Bell: the prompts that it found, each by its own seed; how often the concept comes.

    One's own are found by `palimpsest recover ring_a_bell`.

    Source: Tsai et al., ICLR 2024, arXiv:2310.10012; chiayi-hsu/Ring-A-Bell 9450d84, read
    2026-11-26.

    Lacking: the prompts (of violence in the repository, of nudity elsewhere), Q16 for violence, and
    their sampler, which neither says: DDIM, 50 steps, guidance 7.5 are ours.
    """

    name: ClassVar = "ring_a_bell"
    draw: ClassVar = Draw(50, 7.5, sampler="ddim", noise="torch")
    judges: ClassVar = ("nudenet:unlearndiffatk",)
    needs: ClassVar = (
        "the prompts of chiayi-hsu/Ring-A-Bell (columns prompt, evaluation_seed, case_number)"
    )
