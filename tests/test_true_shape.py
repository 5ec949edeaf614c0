"""Methods run at Stable Diffusion 1.4's true size, in bf16, with random weights.

Latents are 16 × 16 and every sampling takes two steps; the networks and the vocabulary are whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.memory import Peak
from palimpsest.erase import ERASERS
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.shapes import VOCABULARY, true_shape
from palimpsest.patch import Patch
from palimpsest.recover import RECOVERIES
from palimpsest.toolbox.interpolation import Interpolation
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.pictures import Captioned, Drawn, Sampler
from palimpsest.toolbox.relearning_curve import Measured

CONCEPT = Concept("parachute", keep=("a photo of a dog", "a photo of a church"))
MOST = 12_000
"""Megabytes that the process may ever take."""
SHORT: dict[str, dict[str, Any]] = {
    "esd": {"steps": 2, "latents": Latents("student", steps=2)},
    "fmn": {"steps": 2, "train": "xattn", "drawn": Drawn(2, steps=2)},
    "srs_me": {"steps": 2, "latents": Latents("student", steps=2)},
    "slug": {
        "scale": 0.4,
        "batch": 2,
        "forgotten": Captioned(2),
        "retained": Captioned(4),
        "sampling": Sampler(2, 9.0),
    },
    "uce": {},
}
MEMORA: dict[str, Any] = {
    "steps": 2,
    "interpolation": Interpolation(steps=3, start_step=1, pairs=((1, 2),), between=2),
    "measure": Measured((0,), pictures=1),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Diffusion:
    made = true_shape("sd14", device="cpu", latent=16).with_sampling(Sampling(steps=2, batch=1))
    assert sum(p.numel() for p in made.parameters("full").values()) == 859_520_964
    assert len(made.tokenizer) == VOCABULARY == 49_408
    assert {p.dtype for p in made.parameters("full").values()} == {torch.bfloat16}
    return made


@pytest.fixture(scope="module")
def sizes() -> Iterator[Any]:
    place = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, place)
    try:
        yield import_module("sizes")
    finally:
        sys.path.remove(place)


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    """Hold the whole process under the bound, its libraries included."""
    with Peak() as peak:
        yield
        assert peak.megabytes < MOST  # nobody set a baseline: this is all that is resident


def said(model: Diffusion) -> torch.Tensor:
    """Return what the network predicts of the concept at one fixed place."""
    x = torch.randn(1, *model.latents.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eps(x, torch.tensor([500]), model.embed([f"a photo of {CONCEPT.name}"]))


def check(model: Diffusion, patch: Patch, path: Path) -> None:
    """The patch moves the prediction, from a file as from memory, and comes off without a trace."""
    before = said(model)
    patch.save(path)
    with model.patched(patch):
        moved = said(model)
    with model.patched(Patch.load(path)):
        assert torch.equal(said(model), moved)
    assert torch.isfinite(moved).all()
    assert not torch.equal(moved, before)
    assert torch.equal(said(model), before)


@pytest.mark.parametrize("name", SHORT)
def test_an_eraser_edits_the_true_shape(model, sizes, tmp_path, name):
    settings = SHORT[name]
    if name == "slug":  # its gradients are those of the CLIP that the text encoder belongs to
        settings = settings | {"clip": str(sizes.clip_of(model, tmp_path / "clip"))}
    rows: list[dict[str, Any]] = []
    context = Context(seed=1, log=rows.append)
    result = ERASERS.load(name)(**settings)(model, [CONCEPT], context=context)
    assert result.patch is not None
    check(model, result.patch, tmp_path / "patch.safetensors")
    assert len(rows) == settings.get("steps", 0)


def test_memora_learns_from_one_pair_at_the_true_shape(model, tmp_path):
    erased = ERASERS.load("uce")()(model, [CONCEPT], context=Context(seed=1)).patch
    method = RECOVERIES.load("memora")(**MEMORA)
    result = method(model, CONCEPT, erased, context=Context(seed=1))
    assert result.images is not None
    assert len(result.images) == 2
    with model.patched(erased):
        check(model, result.patch, tmp_path / "patch.safetensors")
