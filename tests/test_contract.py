"""What every eraser and every recovery must keep to, whatever it does inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from methods import ALL_ERASERS, ALL_RECOVERIES, PATCHING, title

from palimpsest.core.concepts import Concept
from palimpsest.erase import UCE
from palimpsest.methods import Context, Eraser, Recovery, Result
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
METHODS = [*ALL_ERASERS, *ALL_RECOVERIES]


def tensors(attempt: Result) -> dict[str, torch.Tensor]:
    """All that it came back with."""
    patch = attempt.patch.tensors() if attempt.patch else {}
    answers = {} if attempt.answers is None else {"answers": attempt.answers}
    return {**patch, **attempt.vectors, **answers}


def equal(a: Result, b: Result) -> bool:
    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


ERASED: dict[torch.dtype, Patch] = {}
"""What recoveries are tried on, by the model's type."""


def run(method, model, context: Context, concept: Concept = PARACHUTE) -> Result:
    if isinstance(method, Eraser):
        return method(model, [concept], context=context)
    if model.dtype not in ERASED:
        ERASED[model.dtype] = UCE(**UCE.presets["world"])(
            model, [PARACHUTE], context=Context()
        ).patch
    return method(model, concept, ERASED[model.dtype], context=context)


@pytest.fixture(scope="module")
def made(model, judge) -> Callable[[object], Result]:
    """A method's attempt at the parachute, unbroken, with seed 0: made once."""
    return cache(lambda method: run(method, model, Context(judge=judge)))


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_a_method_is_a_frozen_documented_dataclass(method):
    assert isinstance(method, Eraser) == (method in ALL_ERASERS)
    assert isinstance(method, Recovery) == (method in ALL_RECOVERIES)
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
def test_the_same_seed_gives_the_same_result(method, made, model, context):
    assert equal(made(method), run(method, model, context))


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def low(request) -> Diffusion:
    """The world in half precision, with sampling made short."""
    model = load_model("world", dtype=request.param)
    return model.with_sampling(Sampling(steps=2, guidance=3.0))


@pytest.mark.parametrize("method", METHODS, ids=title)
def test_a_method_works_in_half_precision(method, low, judge):
    attempt = run(method, low, Context(judge=judge))
    assert all(tensor.isfinite().all() for tensor in tensors(attempt).values())
    with low.patched(attempt.patch):
        assert low.generate(["a cat"]).isfinite().all()


@pytest.mark.parametrize("method", PATCHING, ids=title)
def test_the_patch_survives_a_file_and_fits_the_model(method, made, model, tmp_path: Path):
    patch = made(method).patch
    patch.save(tmp_path / "patch.safetensors")
    loaded = Patch.load(tmp_path / "patch.safetensors")
    assert equal(Result(patch), Result(loaded))
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


@pytest.mark.parametrize("method", ALL_RECOVERIES, ids=title)
def test_a_recovery_reports_its_curve_and_its_answers(method, made):
    attempt = made(method)
    steps = [point.step for point in attempt.curve]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    assert all(0 <= p.rate.low <= p.rate.value <= p.rate.high <= 1 for p in attempt.curve)
    assert (attempt.patch is None) == bool(attempt.asked), "weights change, or what is asked"
    assert len(attempt.asked) == (0 if attempt.answers is None else len(attempt.answers))
