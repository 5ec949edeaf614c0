"""Random streams: what they depend on, and that no two share draws."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

import palimpsest
from palimpsest.core.streams import stream

ROOT = Path(palimpsest.__file__).parent
INDEX = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def draws(seed: int, name: str, *index: int) -> torch.Tensor:
    return torch.rand(4, generator=stream(seed, name, *index))


def names() -> set[str]:
    """Every name that is written where a stream is asked for."""
    return {
        call.args[0].value
        for path in ROOT.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "stream"
        and isinstance(call.args[0], ast.Constant)
    }


@given(st.integers(0, 2**62), st.sampled_from(sorted(names())), INDEX)
def test_a_stream_depends_on_seed_name_and_index_alone(seed, name, index):
    assert torch.equal(draws(seed, name, *index), draws(seed, name, *index))
    assert not torch.equal(draws(seed, name, *index), draws(seed + 1, name, *index))
    assert not torch.equal(draws(seed, name, *index), draws(seed, name, *index, 0))


def test_no_two_streams_share_draws():
    """Pictures of concept k were once drawn from the generator of training step 1."""
    assert {"training", "pictures"} <= names()
    indices = [(), *((i,) for i in range(5)), *((i, j) for i in range(5) for j in range(5))]
    seen = {tuple(draws(7, name, *index).tolist()) for name in names() for index in indices}
    assert len(seen) == len(names()) * len(indices)


def test_nothing_numbers_its_own_streams():
    """Outside `models/`, where a prompt's seed draws its noise, a stream has a name."""
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in ROOT.rglob("*.py")
        if path.name != "streams.py" and "models" not in path.relative_to(ROOT).parts
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "generator"
        and len(call.args) > 1
    ]
    assert not wrong, wrong


def test_the_global_generator_is_seeded_from_a_stream():
    """Making a world apart, only PEFT's LoRA and a judge in training start from it, by streams."""
    calls = [
        (path, call)
        for path in ROOT.rglob("*.py")
        if "make" not in path.relative_to(ROOT).parts
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.manual_seed"
    ]
    assert sorted(path.name for path, _ in calls) == ["classifier.py", "classifier.py", "lora.py"]
    assert all(ast.unparse(call.args[0]).endswith(".initial_seed()") for _, call in calls)
