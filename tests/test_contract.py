"""What every eraser and every recovery must keep to, whatever it does inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from methods import ALL_ERASERS, ALL_RECOVERIES, title

from palimpsest.concepts import Concept
from palimpsest.models.loading import load_model
from palimpsest.models.stable_diffusion import Diffusion, Sampling
from palimpsest.patch import Patch
from palimpsest.types import Context, Eraser, Recovery
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
METHODS = [*ALL_ERASERS, *ALL_RECOVERIES]


def equal(a: Patch, b: Patch) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def run(method, model, context: Context, concept: Concept = PARACHUTE) -> Patch:
    if isinstance(method, Eraser) and method in ALL_ERASERS:
        return method(model, [concept], context=context)
    return method(model, concept, None, context=context).patch


@pytest.fixture(scope="module")
def made(model, judge) -> Callable[[object], Patch]:
    """A method's patch of the parachute, unbroken, with seed 0: made once."""
    return cache(lambda method: run(method, model, Context(judge=judge)))


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_a_method_is_a_frozen_documented_dataclass(method):
    assert isinstance(method, Eraser | Recovery)
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.some_field = 1
    assert "@" in method.bibtex
    assert {"published", "world"} <= method.presets.keys()
    kind = type(method)
    for name, settings in kind.presets.items():
        assert isinstance(kind(**settings), kind), name
    assert kind() == kind(**kind.presets["published"]), "the published values are the defaults"


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_every_field_has_a_docstring_under_it(method):
    from tyro import _docstrings

    for field in dataclasses.fields(method):
        help_text = _docstrings.get_field_docstring(type(method), field.name, ())
        assert help_text, f"{title(method)}.{field.name}"


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_the_model_is_left_bit_identical(method, made, model, weights):
    made(method)
    assert all(torch.equal(weights[name], p) for name, p in model._parameters.items())
    assert not any(p.requires_grad for p in model._parameters.values())


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_the_same_seed_gives_the_same_patch(method, made, model, context):
    assert equal(made(method), run(method, model, context))


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def low(request) -> Diffusion:
    """The world in half precision, with sampling made short."""
    model = load_model("world", dtype=request.param)
    return replace(model, sampling=Sampling(steps=2, guidance=3.0))


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_a_method_works_in_half_precision(method, low, judge):
    patch = run(method, low, Context(judge=judge))
    with low.patched(patch):
        assert low.generate(["a cat"]).isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_the_patch_survives_a_file_and_fits_the_model(method, made, model, tmp_path: Path):
    patch = made(method)
    patch.save(tmp_path / "patch.safetensors")
    loaded = Patch.load(tmp_path / "patch.safetensors")
    assert equal(patch, loaded)
    assert loaded.about["method"]
    assert loaded.base == {name: model.fingerprint(name) for name in loaded.names}
    model.accepts(loaded)
    with model.patched(loaded):
        changed = [
            n for n in loaded.edits if not torch.equal(model._parameters[n], model._pristine[n])
        ]
    assert changed or loaded.hook


@pytest.mark.parametrize("method", [m for m in METHODS if hasattr(m, "steps")], ids=title)
def test_a_killed_and_resumed_run_equals_an_unbroken_one(
    method, made, model, context, tmp_path: Path
):
    seen = []

    def interrupt(row):
        seen.append(row["step"])
        if row["step"] == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoints"
    broken = replace(context, folder=folder, log=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(method, model, broken)
    assert list(folder.glob("*.checkpoint"))
    resumed = run(method, model, replace(context, folder=folder, log=seen.append))
    assert seen[:2] == [1, 2]
    assert len(seen) == 3, "the resumed run takes only the last step"
    assert equal(made(method), resumed)


def test_a_recovery_reports_its_relearning_curve(model, context):
    for method in ALL_RECOVERIES:
        attempt = method(model, PARACHUTE, None, context=context)
        assert [point.step for point in attempt.curve] == [0, 3]
        assert all(0 <= p.rate.low <= p.rate.value <= p.rate.high <= 1 for p in attempt.curve)
