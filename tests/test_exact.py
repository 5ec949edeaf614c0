"""The comparisons that other tests rest on must be able to fail."""

from __future__ import annotations

import pytest
import torch
from exact import alike, nearly, nudged, same

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def numbers(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_unit_in_the_last_place_is_a_difference(dtype):
    first = numbers(dtype)
    assert alike(first, numbers(dtype))
    assert not alike(first, nudged(first))
    assert torch.equal(nudged(first).view(-1)[1:], first.view(-1)[1:])
    if dtype.is_floating_point:
        assert nudged(first)[0, 0] == torch.nextafter(first[0, 0], first[1, 1])


@pytest.mark.parametrize(
    "other",
    [
        numbers().double(),
        numbers()[:1],
        numbers().reshape(4),
        numbers().T,
        torch.full((2, 2), torch.nan),
    ],
    ids=["type", "size", "shape", "order", "no number"],
)
def test_another_tensor_is_a_difference(other):
    assert not alike(numbers(), other)


def test_a_zeros_sign_is_a_difference():
    zeros = torch.zeros(2)
    assert torch.equal(zeros, -zeros)
    assert not alike(zeros, -zeros)


def test_a_missing_name_and_a_nudged_tensor_are_differences():
    tensors = {"a": numbers(), "b": torch.tensor(0.0), "c": torch.tensor([True])}
    assert same(tensors, {name: t.clone() for name, t in tensors.items()})
    others = [*nearly(tensors)]
    assert len(others) == 6
    assert not any(same(tensors, other) or same(other, tensors) for other in others)
