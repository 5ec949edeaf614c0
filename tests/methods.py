"""The one table of methods that the contract tests run over, with settings that take seconds."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES

FEW = {"steps": 3, "batch": 1, "pictures": 2, "retain_pictures": 2, "sampling_steps": 2}

SMALL = {
    "erasediff": {**FEW, "inner_steps": 1},
    "esd": {"steps": 3, "batch": 2, "pictures": 4, "sampling_steps": 4},
    "gold": {},
    "salun": FEW,
    "scissorhands": {**FEW, "passes": 1},
    "fmn": {"steps": 3, "batch": 2, "pictures": 4, "sampling_steps": 4},
    "ablation": {"steps": 3, "batch": 2, "pictures": 4, "sampling_steps": 4},
    "cie": {"steps": 3, "batch": 2, "pictures": 4, "sampling_steps": 4},
    "srs_me": {"steps": 3, "batch": 2, "pictures": 4, "sampling_steps": 4},
    "mace": {"steps": 3, "batch": 1, "pictures": 2, "sampling_steps": 2},
    "negative_prompt": {},
    "spm": {"steps": 3, "batch": 1, "anchor_count": 1, "pictures": 2, "sampling_steps": 2},
    "advunlearn": {
        "steps": 3,
        "warmup": 1,
        "attack_steps": 2,
        "batch": 2,
        "retain_batch": 2,
        "pictures": 2,
        "sampling_steps": 2,
    },
    "rece": {},
    "uce": {},
    "memora": {
        "steps": 3,
        "between": 3,
        "pairs": ((1, 2),),
        "sampling_steps": 4,
        "start_step": 1,
        "measure": (0, 3),
        "measure_pictures": 4,
    },
}


def small(registry, name: str):
    """A method with its world preset, made small."""
    kind = registry.load(name)
    return replace(kind(**kind.presets["world"]), **SMALL[name])


ALL_ERASERS = [small(ERASERS, name) for name in ERASERS.own]
ALL_RECOVERIES = [small(RECOVERIES, name) for name in RECOVERIES.own]


def title(method) -> str:
    return type(method).__name__
