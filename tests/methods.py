"""The one table of methods that the contract tests run over, with settings that take seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import sdxl

from palimpsest.data.pairs import Labelled
from palimpsest.data.questions import QUESTIONS, SHOWN, Quiz
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.methods import Eraser, Recovery, Task
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.recover import RECOVERIES
from palimpsest.world import assets, suite
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
    "measure.by": "both",
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
    "imported": {"file": assets.gold("parachute")},
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
    "illusion": {**TUNED, "cuts": (1, 3), "epochs": 1},
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
    "replay": {"found": assets.gold("parachute")},
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

    load: Callable[..., Any]
    """(dtype) → the model, in float32 where no dtype is given."""
    task: Callable[[], Task]
    works: Callable[[Any], bool]
    """Whether it still does what it is for."""


def tiny_flow(dtype: str = "float32") -> Any:
    """Return the family of docs/write-your-own-family.md, made of the code on that page."""
    page = Path(__file__).parents[1] / "docs" / "write-your-own-family.md"
    (source,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {"__name__": "tiny_flow"}
    exec(compile(source, "tiny_flow.py", "exec"), scope)
    return scope["TinyFlow"](load_model("world", dtype=dtype))


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


def paints(model: Any) -> bool:
    return bool(model.generate(["a cat"]).isfinite().all())


SUBJECTS = {
    "diffusion": Subject(
        partial(load_model, "world", sampling=Sampling(steps=2, guidance=3.0)),
        lambda: Task((PARACHUTE,)),
        paints,
    ),
    "flow": Subject(tiny_flow, lambda: Task((PARACHUTE,)), paints),
    "sdxl": Subject(sdxl.load, lambda: Task((PARACHUTE,)), paints),
    "clip": Subject(
        partial(load_model, "clip:world"),
        lesson,
        lambda model: bool(model.texts(["a cat"]).isfinite().all()),
    ),
    "llava": Subject(
        partial(load_model, "llava:world"),
        lambda: lesson(asked=True),
        lambda model: all(model.ask(lesson().validation.images[:2], SHOWN)),
    ),
}


class Case(NamedTuple):
    """A method, made small, and the kind of model that it is tried on."""

    method: Any
    on: str = "diffusion"

    def __str__(self) -> str:
        factored = " as lora" if getattr(self.method, "as_", "dense") == "lora" else ""
        return title(self.method) + factored + f" on {self.on}".replace(" on diffusion", "")


LACKING_IN_FLOW = ("fmn", "fmn_correction", "mace")
"""Those that need attention maps of the text, which the family of the docs does not offer."""

REFUSED = {
    ("gold", "flow"): "this model has no parameter",
    ("gold", "sdxl"): r"unet\.conv_in\.bias: the patch was made for the shape 64,",
    ("imported", "flow"): "Imported has no file;",
    ("imported", "sdxl"): "Imported has no file;",
    ("replay", "flow"): "Replay has nothing to try;",
    ("replay", "sdxl"): "Replay has nothing to try;",
}
"""Methods that a kind of model offers all they need, and that refuse it all the same: a gold U-Net
is the world's own, and no other family has its parameters; Imported and Replay read that file."""

FLOWING = [
    method.changed({"levels": (600, 900)}) if method.name == "noising" else method
    for method in (*ALL_ERASERS, *ALL_RECOVERIES)
    if method.name not in LACKING_IN_FLOW and (method.name, "flow") not in REFUSED
]
"""Those that run on the family of the docs; four steps of its sampler reach no level below 500."""

ON_SDXL = [
    method.changed({"clip": str(sdxl.CLIP)}) if method.name == "slug" else method
    for method in (*ALL_ERASERS, *ALL_RECOVERIES)
    if (method.name, "sdxl") not in REFUSED
]
"""Those that run on Stable Diffusion XL; SLUG moves the first text encoder, whose CLIP it knows."""

ERASING = [Case(method) for method in ALL_ERASERS]
ERASING += [Case(small(ERASERS, "esd").changed({"as_": "lora", "lr": 1e-2}))]
ERASING += [Case(method, "flow") for method in FLOWING if isinstance(method, Eraser)]
ERASING += [Case(method, "sdxl") for method in ON_SDXL if isinstance(method, Eraser)]
for _kind, _rows in BY_SETS.items():
    for _name, _settings in _rows.items():
        _eraser = ERASERS.load(_name)
        _preset = {**_eraser.presets.get(f"world_{_kind}", _eraser.presets["world"])}
        ERASING.append(Case(_eraser(**_preset).changed(_settings), _kind))
RECOVERING = [Case(method) for method in ALL_RECOVERIES]
RECOVERING += [Case(method, "flow") for method in FLOWING if isinstance(method, Recovery)]
RECOVERING += [Case(method, "sdxl") for method in ON_SDXL if isinstance(method, Recovery)]
PATCHING = [*ERASING, *(case for case in RECOVERING if case.method.name not in ASKING)]
