"""The one table of methods that the contract tests run over, with settings that take seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from palimpsest.data.pairs import Labelled
from palimpsest.data.questions import QUESTIONS, SHOWN, Quiz
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.methods import Task
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.recover import RECOVERIES
from palimpsest.world import suite
from palimpsest.world.datasets import world_classes, world_pairs

FEW = {
    "steps": 3,
    "batch": 1,
    "forget.pictures": 2,
    "forget.steps": 2,
    "retain.pictures": 2,
    "retain.steps": 2,
}

DRAWN = {"steps": 3, "batch": 2, "pictures": 2, "sampling_steps": 2}

STEERED = {"steps": 3, "batch": 2, "drawn.pictures": 2, "drawn.steps": 2}

NOISED = {"steps": 3, "latents.batch": 2, "latents.pictures": 2, "latents.steps": 2}

TUNED = {
    "batch": 1,
    "measure.by": "classifier",
    "measure.least_known": 0.0,
    "measure.pictures": 2,
}

SMALL = {
    "ablation": {"steps": 3, "batch": 2, "drawn.pictures": 2, "drawn.steps": 2},
    "advunlearn": {**NOISED, "warmup": 1, "attack_steps": 1, "retain_batch": 1},
    "cie": NOISED,
    "erasediff": {**FEW, "inner_steps": 1},
    "esd": {"steps": 3, "latents.batch": 2, "latents.pictures": 4, "latents.steps": 4},
    "fmn": STEERED,
    "fmn_correction": STEERED,
    "gold": {},
    "mace": {**STEERED, "batch": 1},
    "negative_prompt": {},
    "rece": {},
    "salun": FEW,
    "scissorhands": {**FEW, "passes": 1},
    "slug": {
        "forgotten.pictures": 4,
        "retained.pictures": 4,
        "batch": 4,
        "blocks": 1,
        "tries": 1,
        "search_pictures": 2,
        "sampling.steps": 2,
    },
    "spm": {**NOISED, "latents.batch": 1, "anchor_count": 1},
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
    "noising": {"sampling.steps": 4, "levels": (300, 600), "pictures": 2},
    "p4d": {"tokens": 4, "steps": 3, "every": 3, "prompts": 2},
    "restoration": {"measure.pictures": 2},
    "ring_a_bell": {"tokens": 4, "generations": 3, "population": 8, "prompts": 2},
    "unlearn_diff_atk": {"iterations": 1, "timesteps": (300, 600, 900), "prompts": 2},
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


ALL_ERASERS = [small(ERASERS, name) for name in OF_DIFFUSION]
"""Those of text-to-image models."""
ALL_RECOVERIES = [small(RECOVERIES, name) for name in RECOVERIES.own]


def title(method) -> str:
    return type(method).__name__


# --- which model and task each gets ---

TRAINED = {"epochs": 3, "batch": 16}
"""Three steps over 8 pictures to forget or 16 to retain."""

BY_SETS = {
    "clip": {
        "slug": {"batch": 16, "tries": 1},
        "fine_tune": TRAINED,
        "gradient_ascent": TRAINED,
        "salun_clip": TRAINED,
        "ssd": {"pictures": 2},
    },
    "llava": {"slug": {"batch": 16, "tries": 1}},
}
"""Kind of model → erasers that learn from given pictures, made small."""


@dataclass(frozen=True)
class Subject:
    """A kind of model that methods are tried on."""

    name: str
    """What `load_model` calls it."""
    task: Callable[[], Task]
    works: Callable[[Any], bool]
    """Whether it still does what it is for."""
    sampling: Sampling | None = None

    def load(self, dtype: str = "float32") -> Any:
        return load_model(self.name, dtype=dtype, sampling=self.sampling)


def quiz(shown: Labelled) -> Quiz:
    kinds = {name: suite.kind_of(name) for name in shown.prompts}
    return Quiz(shown.images, shown.labels, shown.prompts, kinds, QUESTIONS)


@cache
def lesson(name: str = "parachute", asked: bool = False) -> Task:
    """A concept of the world with pictures to forget, to retain and to choose by."""
    shown = world_classes(1, 600_000, more=[name])
    return Task(
        (suite.concept(name),),
        world_pairs([name], 8),
        world_pairs([name], 16, without=True),
        quiz(shown) if asked else shown,
    )


PARACHUTE = suite.concept("parachute", "balloon")
SUBJECTS = {
    "diffusion": Subject(
        "world",
        lambda: Task((PARACHUTE,)),
        lambda model: bool(model.generate(["a cat"]).isfinite().all()),
        Sampling(steps=2, guidance=3.0),
    ),
    "clip": Subject(
        "clip:world", lesson, lambda model: bool(model.texts(["a cat"]).isfinite().all())
    ),
    "llava": Subject(
        "llava:world",
        lambda: lesson(asked=True),
        lambda model: all(model.ask(lesson().validation.images[:2], SHOWN)),
    ),
}


class Case(NamedTuple):
    """A method, made small, and the kind of model that it is tried on."""

    method: Any
    on: str = "diffusion"

    def __str__(self) -> str:
        return title(self.method) + ("" if self.on == "diffusion" else f" on {self.on}")


ERASING = [Case(method) for method in ALL_ERASERS]
for _kind, _rows in BY_SETS.items():
    for _name, _settings in _rows.items():
        _eraser = ERASERS.load(_name)
        _preset = {**_eraser.presets.get(f"world_{_kind}", _eraser.presets["world"])}
        ERASING.append(Case(_eraser(**_preset).changed(_settings), _kind))
RECOVERING = [Case(method) for method in ALL_RECOVERIES]
PATCHING = [
    *ERASING,
    *(c for name, c in zip(RECOVERIES.own, RECOVERING, strict=True) if name not in ASKING),
]
