"""A patch at low rank: Eckart and Young's optimum, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.patch import Patch
from palimpsest.patch.algebra import check_rank, truncated
from palimpsest.patch.edits import Dense, LowRank

SHAPES = {"wide": (12, 40), "tall": (40, 12), "conv": (10, 8, 3, 3), "bias": (40,), "thin": (2, 9)}


@pytest.fixture
def patch() -> Patch:
    g = generator(5)
    return Patch.dense({n: torch.randn(s, generator=g) for n, s in SHAPES.items()})


def test_each_shift_is_the_best_of_its_rank(patch):
    light, residual = truncated(patch, 3, smaller=True)
    lost = total = 0.0
    for name, (edit,) in patch.edits.items():
        values = torch.linalg.svdvals(edit.delta.double().flatten(1)) if edit.delta.ndim > 1 else 0
        (cut,) = light.edits[name]
        total += float(edit.delta.double().square().sum())
        if name in ("bias", "thin"):
            assert torch.equal(cut.delta, edit.delta), "two factors would be larger"
            continue
        assert isinstance(cut, LowRank)
        assert cut.up.shape[1] == cut.down.shape[0] == 3
        tail = float(values[3:].square().sum())  # Eckart and Young 1936
        rest = (edit.delta.double() - cut.shift(edit.delta).double()).square().sum()
        assert float(rest) == pytest.approx(tail, rel=1e-4)
        lost += tail
    assert residual == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert light.nbytes < patch.nbytes


def test_a_shift_of_that_rank_is_kept_exactly(tmp_path):
    up, down = (
        torch.randn(20, 2, generator=generator(1)),
        torch.randn(2, 30, generator=generator(2)),
    )
    light, residual = truncated(
        Patch.dense({"w": up @ down}, about={"method": "x"}), 2, smaller=True
    )
    assert residual < 1e-6
    assert light.about["of"] == {"method": "x"}
    light.save(tmp_path / "light.safetensors")
    (edit,) = Patch.load(tmp_path / "light.safetensors").edits["w"]
    assert torch.allclose(edit.shift(torch.zeros(20, 30)), up @ down, atol=1e-5)


def test_a_factored_shift_beside_a_dense_one_is_cut_together_with_it():
    both = Patch({"w": (Dense(torch.ones(9, 9)), LowRank(torch.eye(9)[:, :1], torch.eye(9)[1:2]))})
    light, residual = truncated(both, 2)
    (edit,) = light.edits["w"]
    assert isinstance(edit, LowRank)
    expected = torch.ones(9, 9)
    expected[0, 1] += 1
    assert torch.allclose(edit.shift(torch.zeros(9, 9)), expected, atol=1e-6)
    assert residual < 1e-6


@pytest.mark.parametrize(("rank", "told"), [(0, "at least 1"), (9, "is 9, .* that does is 8")])
def test_a_rank_that_saves_nothing_is_refused(rank, told):
    with pytest.raises(PalimpsestError, match=told):  # 9·(12 + 30) > 12·30 > 8·(12 + 30)
        check_rank({"w": (12, 30), "b": (5,)}, rank, smaller=True)
    check_rank({"w": (12, 30), "b": (5,)}, 9)


def test_factors_are_halved_between_the_two():
    (edit,) = truncated(Patch.dense({"w": torch.ones(4, 9) * 1e6}), 1)[0].edits["w"]
    assert isinstance(edit, LowRank)
    assert float(edit.up.norm()) == pytest.approx(float(edit.down.norm()), rel=1e-5)
    assert float(edit.up.norm()) == pytest.approx((6e6) ** 0.5, rel=1e-5)  # σ = 1e6·√(4·9)
