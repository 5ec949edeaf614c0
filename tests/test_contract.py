"""What every eraser and every recovery must keep to, whatever it does inside."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import alike, falsify, nearly, nudged, same
from methods import ERASING, PARACHUTE, PATCHING, RECOVERING, REFUSED, SUBJECTS, Case

from palimpsest.core.errors import BOUNDS, PalimpsestError, Settings
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_CLIP, OF_DIFFUSION, OF_LLAVA, UCE
from palimpsest.methods import Context, Eraser, Recovery, Result
from palimpsest.patch import Patch
from palimpsest.patch.edits import edited
from palimpsest.patch.hooks import rebuilt
from palimpsest.recover import RECOVERIES
from palimpsest.toolbox.clip_training import ClipTrained

CASES = [*ERASING, *RECOVERING]
TRAINING = [
    case for case in CASES if hasattr(case.method, "steps") or isinstance(case.method, ClipTrained)
]


PLAIN = ("flow", "sdxl")
"""Kinds of models with random weights."""

OVER_ALL = {"SLUG on clip", "SLUG on llava"}
"""Cases that draw nothing at random though their method does elsewhere: a gradient over all given
pictures. Every other one whose method is not `seedless` comes to something else with another seed.
"""

ROUNDED = 0.4
"""How far the change of a patch made in half precision may be from that of one made in float32, as
a share of the latter. The changes of two seeds are further apart (0.45 at least, where pictures are
drawn)."""

REORDERED = 0.02
"""The same where the gradients of a batch are added row by row: only the last bits differ, which
Adam makes something of where a gradient is nothing but these."""

ROUNDED_MORE = {
    "ScissorHands on flow": 0.7,
    "SRSME": 1.4,
    "SRSME on flow": 1.4,
    "SRSME on sdxl": 1.4,
}
"""Cases that rounding moves further. ScissorHands starts the weights of the highest ranks anew:
with random weights ranks are close, and rounding swaps some. SRS-ME trains along a basis of a null
space: rounding turns the basis, and Adam moves along each of its axes by as much."""

FLUSHED = dict.fromkeys([f"{m} on flow" for m in ("ConceptAblation", "CiE", "ESD", "SPM")], 0.8)
"""The same in float16 alone: some gradients of the family's random weights are too small for it and
vanish, and Adam leaves those weights where they are."""


def tensors(result: Result) -> dict[str, torch.Tensor]:
    """Return all tensors that a method came back with."""
    patch = result.patch.tensors() if result.patch else {}
    answers = {} if result.answers is None else {"answers": result.answers}
    return {**patch, **result.vectors, **answers}


def hook(result: Result) -> Any:
    """Return what the patch's hook says beside its tensors."""
    return result.patch and result.patch._hook_manifest()


def equal(a: Result, b: Result) -> bool:
    return same(tensors(a), tensors(b)) and hook(a) == hook(b)


def others(result: Result) -> Iterator[Result]:
    """Yield results that differ from one in one last bit, or by one missing name."""
    for vectors in nearly(result.vectors):
        yield replace(result, vectors=vectors)
    if result.answers is not None:
        yield replace(result, answers=nudged(result.answers))
        yield replace(result, answers=None)
    if result.patch is not None:
        yield from (replace(result, patch=patch) for patch in other_patches(result.patch))


def other_patches(patch: Patch) -> Iterator[Patch]:
    names = [*patch.edits]
    for name in names[:: max(1, len(names) // 12)]:  # of many weights a dozen
        edit, *more = patch.edits[name]
        yield replace(patch, edits={n: e for n, e in patch.edits.items() if n != name})
        for key, tensor in vars(edit).items():
            other = replace(edit, **{key: nudged(tensor)})
            yield replace(patch, edits={**patch.edits, name: (other, *more)})
    if patch.hook is not None:
        own = patch.hook.tensors()
        yield replace(patch, hook=None)
        for name in [*own][:: max(1, len(own) // 12)]:
            near = {**own, name: nudged(own[name])}
            yield replace(patch, hook=rebuilt(patch._hook_manifest(), near))


def change(model, patch: Patch) -> dict[str, torch.Tensor]:
    """Return what a patch adds to the weights and by its adapters, in float64."""
    base = {name: model.weight(name).float() for name in patch.edits}
    added = {n: (edited(base[n], edits) - base[n]).double() for n, edits in patch.edits.items()}
    adapters = patch.hook.adapters if patch.hook else {}
    return added | {n: up.double() @ down.double() for n, (up, down) in adapters.items()}


def norm(change: dict[str, torch.Tensor]) -> float:
    return sqrt(sum(float(shift.square().sum()) for shift in change.values()))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return ‖a − b‖ / ‖b‖ over all names of either."""
    zero = torch.zeros(())
    apart = {name: a.get(name, zero) - b.get(name, zero) for name in {*a, *b}}
    return norm(apart) / norm(b)


ERASED: dict[tuple[str, torch.dtype], Patch] = {}
"""What recoveries are tried on, by the kind of model and its type."""


def run(case: Case, model, context: Context) -> Result:
    if isinstance(case.method, Eraser):
        return case.method(model, SUBJECTS[case.on].task(), context=context)
    key = case.on, model.dtype
    if key not in ERASED:
        ERASED[key] = UCE(**UCE.presets["world"])(model, [PARACHUTE], context=Context()).patch
    return case.method(model, PARACHUTE, ERASED[key], context=context)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """A model of each kind."""
    return {kind: subject.load() for kind, subject in SUBJECTS.items()}


@pytest.fixture(scope="module")
def untouched(models) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each as they were loaded."""
    return {
        kind: {name: p.detach().clone() for name, p in model._parameters.items()}
        for kind, model in models.items()
    }


@pytest.fixture(scope="module")
def made(models, untouched, judge) -> Callable[[Case], Result]:
    """What a method makes of the parachute, unbroken, with seed 0: made once."""
    return cache(lambda case: run(case, models[case.on], Context(judge=judge)))


def lacking(method, model) -> bool:
    """Return whether a model does not offer what a method needs."""
    one = method.needs_one and not method.needs_one & model.offers
    return bool(method.needs - model.offers or one)


METHODS = [(registry, name) for registry in (ERASERS, RECOVERIES) for name in registry.own]


@pytest.mark.parametrize("kind", SUBJECTS)
def test_every_method_is_in_the_table_on_every_kind_of_model_that_offers_what_it_needs(
    kind, models
):
    listed = {case.method.name for case in CASES if case.on == kind}
    for registry, name in METHODS:
        runs = name in listed or (name, kind) in REFUSED
        assert lacking(registry.load(name), models[kind]) != runs, (name, kind)


def test_the_lists_of_erasers_are_those_of_the_table():
    for kind, names in (("diffusion", OF_DIFFUSION), ("clip", OF_CLIP), ("llava", OF_LLAVA)):
        listed = dict.fromkeys(c.method.name for c in ERASING if c.on == kind)
        assert [*listed] == [*names]


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_method_that_a_model_lacks_something_for_is_refused_in_one_sentence(
    kind, models, untouched, judge
):
    model, task = models[kind], SUBJECTS[kind].task()
    for registry, name in METHODS:
        method = world(registry, name)
        if lacking(method, model):
            told = rf"^{type(method).__name__} needs .*, which '{model.name}' does not have; [^.]*$"
        elif (name, kind) in REFUSED:
            told = rf"^{REFUSED[name, kind]} [^.]*'[^']*'[^.]*$"
        else:
            continue
        erased = () if isinstance(method, Eraser) else (None,)
        with pytest.raises(PalimpsestError, match=told):
            method(model, task, *erased, context=Context(judge=judge))
    assert same(untouched[kind], model._parameters)


def world(registry: Registry, name: str):
    """Return a method with the first preset of the world's models."""
    kind = registry.load(name)
    return kind(**next(v for n, v in kind.presets.items() if n.startswith("world")))


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


WRONG = {"least": -1e-3, "most": 1e-3, "above": 0.0, "below": 0.0}
"""What, added to a bound of each rule, breaks it."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_value_outside_its_bound_is_refused_by_a_sentence_that_names_it(case):
    nested = {type(v) for v in vars(case.method).values() if isinstance(v, Settings)}
    bounds = [
        (kind, name, value + WRONG[rule])
        for kind in {type(case.method), *nested}
        for base in kind.__mro__
        for rule in BOUNDS
        for name, value in vars(base).get(rule, {}).items()
    ]
    for kind, name, value in [*bounds, *((k, n, float("nan")) for k, n, _ in bounds)]:
        with pytest.raises(PalimpsestError, match=f"{kind.__name__}: {name} is {value}; it must"):
            kind(**{name: value})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_model_is_left_bit_identical(case, made, models, untouched):
    made(case)
    model, before = models[case.on], untouched[case.on]
    assert same(before, model._parameters)
    assert not any(p.requires_grad for p in model._parameters.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_seed_gives_the_same_result(case, made, models, context):
    assert equal(made(case), run(case, models[case.on], context))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_another_seed_gives_another_result_where_anything_is_drawn(case, made, models, judge):
    other = run(case, models[case.on], Context(seed=1, judge=judge))
    nothing = case.method.seedless or str(case) in OVER_ALL
    assert equal(made(case), other) == nothing


def test_every_exception_is_a_case():
    assert {str(case) for case in CASES} >= OVER_ALL | {*ROUNDED_MORE, *FLUSHED}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_result_that_differs_in_one_bit_or_by_one_name_is_not_the_same(case, made):
    result, different = made(case), [*others(made(case))]
    assert equal(result, result)
    assert different
    assert not any(equal(result, other) for other in different)


LOW = ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
"""A CPU computes the second, which GPUs are fast with, five times as slowly as the first."""


@pytest.fixture(scope="module", params=LOW)
def low(request) -> Callable[[str], Any]:
    """A model of a kind in half precision, with sampling made short."""
    return cache(lambda kind: SUBJECTS[kind].load(dtype=request.param))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_makes_nearly_the_same_in_half_precision(case, low, made, models, judge):
    model = low(case.on)
    attempt = run(case, model, Context(judge=judge))
    if case in PATCHING:
        ours, theirs = (change(models[case.on], r.patch) for r in (attempt, made(case)))
        more = ROUNDED_MORE | (FLUSHED if model.dtype == torch.float16 else {})
        assert not theirs or distance(ours, theirs) <= more.get(str(case), ROUNDED)
        assert theirs or equal(attempt, made(case)), "a hook without adapters is rounded nowhere"
    assert all(tensor.isfinite().all() for tensor in tensors(attempt).values())
    with model.patched(attempt.patch):
        assert SUBJECTS[case.on].works(model)


DRAWING = [
    case
    for case in TRAINING
    if case.on == "diffusion" and (case in PATCHING or case.method.name == "concept_inversion")
]
"""Those that train anything but which words stand in a prompt, where a last bit may choose."""


@pytest.fixture(scope="module")
def sparing() -> Any:
    """The world, which computes with little memory."""
    model = SUBJECTS["diffusion"].load()
    model.use_memory("low")
    return model


@pytest.mark.parametrize("case", DRAWING, ids=str)
def test_a_method_makes_the_same_with_little_memory(case, sparing, made, models, context):
    attempt, usual = run(case, sparing, context), made(case)
    if usual.patch is not None:
        ours, theirs = (change(models[case.on], r.patch) for r in (attempt, usual))
        assert not theirs or distance(ours, theirs) <= REORDERED
    for name, vector in usual.vectors.items():
        assert torch.allclose(attempt.vectors[name], vector, atol=1e-4), name


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
        changed = [n for n in loaded.edits if not alike(model._parameters[n], model._pristine[n])]
    assert changed or loaded.hook


@pytest.fixture(scope="module")
def broken(models, judge, tmp_path_factory) -> Callable[[Case], Path]:
    """The checkpoints of a run that was killed in its second step: made once."""

    def kill(case: Case) -> Path:
        folder, seen = tmp_path_factory.mktemp("broken"), []

        def interrupt(row):
            seen.append(row["step"])
            if row["step"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(case, models[case.on], Context(judge=judge, folder=folder, log=interrupt))
        assert seen == [1, 2]
        assert list(folder.glob("*.checkpoint"))
        return folder

    return cache(kill)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_a_killed_and_resumed_run_equals_an_unbroken_one(
    case, made, broken, models, context, tmp_path: Path
):
    seen, folder = [], shutil.copytree(broken(case), tmp_path / "checkpoints")
    resumed = run(case, models[case.on], replace(context, folder=folder, log=seen.append))
    assert len(seen) == 1, "the resumed run takes only the last step"
    assert equal(made(case), resumed)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_a_run_resumed_from_a_falsified_checkpoint_does_not_equal_an_unbroken_one(
    case, made, broken, models, context, tmp_path: Path
):
    folder = shutil.copytree(broken(case), tmp_path / "checkpoints")
    falsify(folder)
    assert not equal(made(case), run(case, models[case.on], replace(context, folder=folder)))


@pytest.mark.parametrize("case", RECOVERING, ids=str)
def test_a_recovery_without_a_judge_runs_and_measures_nothing(case, models):
    found = run(case, models[case.on], Context())
    assert (found.curve, found.queries) == ((), 0)
    assert found.patch is not None or found.answers is not None


@pytest.mark.parametrize("case", RECOVERING, ids=str)
def test_a_recovery_reports_its_curve_and_its_answers(case, made):
    attempt = made(case)
    steps = [point.step for point in attempt.curve]
    assert len(steps) >= 2 or case.method.name == "replay", "nothing is sought in a replay"
    assert steps == sorted(set(steps))
    assert all(0 <= p.rate.low <= p.rate.value <= p.rate.high <= 1 for p in attempt.curve)
    assert (attempt.patch is None) == bool(attempt.asked), "weights change, or what is asked"
    assert len(attempt.asked) == (0 if attempt.answers is None else len(attempt.answers))
