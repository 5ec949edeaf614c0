"""The recoveries, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.core.registry import Registry

if TYPE_CHECKING:
    from palimpsest.recover.benign import Benign as Benign
    from palimpsest.recover.concept_inversion import ConceptInversion as ConceptInversion
    from palimpsest.recover.illusion import Illusion as Illusion
    from palimpsest.recover.memora import MemoRa as MemoRa
    from palimpsest.recover.noising import NoisingProbe as NoisingProbe
    from palimpsest.recover.p4d import P4D as P4D
    from palimpsest.recover.replay import Replay as Replay
    from palimpsest.recover.restoration import Restoration as Restoration
    from palimpsest.recover.ring_a_bell import RingABell as RingABell
    from palimpsest.recover.unlearn_diff_atk import UnlearnDiffAtk as UnlearnDiffAtk

RECOVERIES = Registry(
    "recovery",
    "palimpsest.recoveries",
    {
        "benign": "Benign",
        "concept_inversion": "ConceptInversion",
        "illusion": "Illusion",
        "memora": "MemoRa",
        "noising": "NoisingProbe",
        "p4d": "P4D",
        "replay": "Replay",
        "restoration": "Restoration",
        "ring_a_bell": "RingABell",
        "unlearn_diff_atk": "UnlearnDiffAtk",
    },
    __name__,
)
"""Every recovery by its command-line name."""


def __getattr__(name: str):
    return RECOVERIES.attribute(name)
