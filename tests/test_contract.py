"""What every eraser and every recovery must keep to, whatever it does inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import ERASING, PARACHUTE, PATCHING, RECOVERING, SUBJECTS, Case

from palimpsest.erase import ERASERS, OF_CLIP, OF_DIFFUSION, OF_LLAVA, UCE
from palimpsest.methods import Context, Eraser, Recovery, Result
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_training import ClipTrained

CASES = [*ERASING, *RECOVERING]
TRAINING = [
    case for case in CASES if hasattr(case.method, "steps") or isinstance(case.method, ClipTrained)
]


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


def run(case: Case, model, context: Context) -> Result:
    if isinstance(case.method, Eraser):
        return case.method(model, SUBJECTS[case.on].task(), context=context)
    if model.dtype not in ERASED:
        ERASED[model.dtype] = UCE(**UCE.presets["world"])(
            model, [PARACHUTE], context=Context()
        ).patch
    return case.method(model, PARACHUTE, ERASED[model.dtype], context=context)


@pytest.fixture(scope="module")
def models(model) -> dict[str, Any]:
    """A model of each kind."""
    return {"diffusion": model} | {kind: SUBJECTS[kind].load() for kind in ("clip", "llava")}


@pytest.fixture(scope="module")
def untouched(models, weights) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each as they were loaded."""
    found = {
        kind: {name: p.detach().clone() for name, p in model._parameters.items()}
        for kind, model in models.items()
    }
    return found | {"diffusion": weights}


@pytest.fixture(scope="module")
def made(models, untouched, judge) -> Callable[[Case], Result]:
    """What a method makes of the parachute, unbroken, with seed 0: made once."""
    return cache(lambda case: run(case, models[case.on], Context(judge=judge)))


def test_every_eraser_is_in_the_table_on_every_kind_of_model_that_it_edits():
    for kind, names in (("diffusion", OF_DIFFUSION), ("clip", OF_CLIP), ("llava", OF_LLAVA)):
        assert [c.method.name for c in ERASING if c.on == kind] == [*names]
        offers = SUBJECTS[kind].load().offers
        for name in ERASERS.own:
            method = ERASERS.load(name)
            lacks = method.needs - offers or (method.needs_one and not method.needs_one & offers)
            assert bool(lacks) == (name not in names), (name, kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_is_a_frozen_documented_dataclass(case):
    method = case.method
    assert isinstance(method, Eraser) == (case in ERASING)
    assert isinstance(method, Recovery) == (case in RECOVERING)
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.some_field = 1
    assert "@" in method.bibtex
    assert {"published", "world"} <= method.presets.keys()
    kind = type(method)
    for name, settings in kind.presets.items():
        assert isinstance(kind(**settings), kind), name
    assert kind() == kind(**kind.presets["published"]), "the published values are the defaults"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_field_has_a_docstring_under_it(case):
    from tyro import _docstrings

    for field in dataclasses.fields(case.method):
        help_text = _docstrings.get_field_docstring(type(case.method), field.name, ())
        assert help_text, f"{case}.{field.name}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_model_is_left_bit_identical(case, made, models, untouched):
    made(case)
    model, before = models[case.on], untouched[case.on]
    assert all(torch.equal(before[name], p) for name, p in model._parameters.items())
    assert not any(p.requires_grad for p in model._parameters.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_seed_gives_the_same_result(case, made, models, context):
    assert equal(made(case), run(case, models[case.on], context))


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def low(request) -> Callable[[str], Any]:
    """A model of a kind in half precision, with sampling made short."""
    return cache(lambda kind: SUBJECTS[kind].load(request.param))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_works_in_half_precision(case, low, judge):
    model = low(case.on)
    attempt = run(case, model, Context(judge=judge))
    assert all(tensor.isfinite().all() for tensor in tensors(attempt).values())
    with model.patched(attempt.patch):
        assert SUBJECTS[case.on].works(model)


@pytest.mark.parametrize("case", PATCHING, ids=str)
def test_the_patch_survives_a_file_and_fits_the_model(case, made, models, tmp_path: Path):
    patch, model = made(case).patch, models[case.on]
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


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_a_killed_and_resumed_run_equals_an_unbroken_one(
    case, made, models, context, tmp_path: Path
):
    seen, model = [], models[case.on]

    def interrupt(row):
        seen.append(row["step"])
        if row["step"] == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoints"
    broken = replace(context, folder=folder, log=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(case, model, broken)
    assert list(folder.glob("*.checkpoint"))
    resumed = run(case, model, replace(context, folder=folder, log=seen.append))
    assert seen[:2] == [1, 2]
    assert len(seen) == 3, "the resumed run takes only the last step"
    assert equal(made(case), resumed)


@pytest.mark.parametrize("case", RECOVERING, ids=str)
def test_a_recovery_reports_its_curve_and_its_answers(case, made):
    attempt = made(case)
    steps = [point.step for point in attempt.curve]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    assert all(0 <= p.rate.low <= p.rate.value <= p.rate.high <= 1 for p in attempt.curve)
    assert (attempt.patch is None) == bool(attempt.asked), "weights change, or what is asked"
    assert len(attempt.asked) == (0 if attempt.answers is None else len(attempt.answers))
