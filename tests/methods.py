"""The one table of methods that the contract tests run over, with settings that take seconds."""

from __future__ import annotations

from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES

FEW = {"steps": 3, "batch": 1, "pictures": 2, "retain_pictures": 2, "sampling_steps": 2}

DRAWN = {"steps": 3, "batch": 2, "pictures": 2, "sampling_steps": 2}

NOISED = {"steps": 3, "latents.batch": 2, "latents.pictures": 2, "latents.steps": 2}

TUNED = {
    "batch": 1,
    "measure.by": "classifier",
    "measure.least_known": 0.0,
    "measure.pictures": 2,
}

SMALL = {
    "ablation": DRAWN,
    "advunlearn": {**DRAWN, "warmup": 1, "attack_steps": 1, "retain_batch": 1},
    "cie": NOISED,
    "erasediff": {**FEW, "inner_steps": 1},
    "esd": {"steps": 3, "latents.batch": 2, "latents.pictures": 4, "latents.steps": 4},
    "fmn": DRAWN,
    "gold": {},
    "mace": {**DRAWN, "batch": 1},
    "negative_prompt": {},
    "rece": {},
    "salun": FEW,
    "scissorhands": {**FEW, "passes": 1},
    "slug": {
        "pictures": 4,
        "retain_pictures": 4,
        "batch": 4,
        "blocks": 1,
        "tries": 1,
        "search_pictures": 2,
        "sampling_steps": 2,
    },
    "spm": {**DRAWN, "batch": 1, "anchor_count": 1},
    "srs_me": NOISED,
    "uce": {},
    "benign": {**TUNED, "steps": 3, "pictures": 3, "measure.at": (0, 3)},
    "illusion": {**TUNED, "cuts": (3,), "epochs": 1},
    "concept_inversion": {
        "steps": 3,
        "batch": 2,
        "drawn.pictures": 2,
        "drawn.steps": 2,
        "measure.at": (0, 3),
        "measure.pictures": 2,
    },
    "noising": {"sampling_steps": 4, "levels": (300, 600), "measure_pictures": 2},
    "p4d": {"tokens": 4, "steps": 3, "every": 3, "measure_pictures": 2},
    "restoration": {"measure.pictures": 2},
    "ring_a_bell": {"tokens": 4, "generations": 3, "population": 8, "measure_pictures": 2},
    "unlearn_diff_atk": {"iterations": 1, "timesteps": (300, 600, 900), "measure_pictures": 2},
    "memora": {
        "steps": 3,
        "interpolation.between": 3,
        "interpolation.pairs": ((1, 2),),
        "interpolation.steps": 4,
        "interpolation.start_step": 1,
        "measure.at": (0, 3),
        "measure.pictures": 4,
    },
}


ASKING = ("concept_inversion", "noising", "p4d", "ring_a_bell", "unlearn_diff_atk")
"""Recoveries that change what is asked: pictures come back, and no patch."""


def small(registry, name: str):
    """A method with its world preset, made small."""
    kind = registry.load(name)
    return kind(**kind.presets["world"]).changed(SMALL[name])


ALL_ERASERS = [small(ERASERS, name) for name in ERASERS.own]
ALL_RECOVERIES = [small(RECOVERIES, name) for name in RECOVERIES.own]
PATCHING = [
    *ALL_ERASERS,
    *(m for name, m in zip(RECOVERIES.own, ALL_RECOVERIES, strict=True) if name not in ASKING),
]


def title(method) -> str:
    return type(method).__name__
