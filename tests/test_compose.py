"""The algebra over random patches of every kind: sums, products, overlaps, low rank."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_patch import NAMES, SHAPE, edit, patches, tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.patch import Patch
from palimpsest.patch.algebra import compose, energies, inner, overall, overlaps, truncated
from palimpsest.patch.edits import Dense, LowRank, Replacement, Rows, edited

few = settings(max_examples=30, deadline=None)
mixed = st.lists(patches, min_size=1, max_size=3).map(lambda ps: compose(ps)[0])
"""Patches whose tensors have edits of several kinds at once."""


def shift(patch: Patch, name: str) -> torch.Tensor:
    """Δ multiplied out, in float64."""
    zero = torch.zeros(SHAPE)
    return sum((e.shift(zero).double() for e in patch.edits.get(name, ())), zero.double())


def apart(a: Patch, b: Patch, *terms: Patch) -> float:
    """Largest difference of two edits of zero, relative to the terms that they are sums of."""
    size = max(float(shift(t, n).abs().max()) for t in (a, b, *terms) for n in NAMES)
    zero = torch.zeros(SHAPE)
    both = [[edited(zero, p.edits.get(n, ())) for n in NAMES] for p in (a, b)]
    return max(float((x - y).abs().max()) for x, y in zip(*both, strict=True)) / size


# --- sums ---


@few
@given(mixed, mixed)
def test_order_does_not_matter(a: Patch, b: Patch):
    assert apart(a + b, b + a, a, b) < 1e-6


@few
@given(mixed, mixed, mixed)
def test_brackets_do_not_matter(a: Patch, b: Patch, c: Patch):
    assert apart((a + b) + c, a + (b + c), a, b, c) < 1e-6


@few
@given(mixed, mixed, st.floats(-3, 3))
def test_a_scale_distributes(a: Patch, b: Patch, k: float):
    assert apart((a + b).scaled(k), a.scaled(k) + b.scaled(k), a, b) < 2e-6


@few
@given(mixed, mixed)
def test_what_is_added_and_taken_out_leaves_nothing(a: Patch, b: Patch):
    assert apart((a + b) - b, a, a, b) < 1e-6


def test_a_sum_of_many_tells_its_parts_flat():
    parts = [Patch({NAMES[0]: (edit("dense", i),)}, about={"method": f"m{i}"}) for i in range(3)]
    joint, _ = compose(parts)
    assert joint.about == {"sum": [{"method": "m0"}, {"method": "m1"}, {"method": "m2"}]}


# --- products ---


@few
@given(mixed, mixed)
def test_a_product_equals_that_of_the_edits_multiplied_out(a: Patch, b: Patch):
    for name in a.edits.keys() & b.edits.keys():
        x, y = shift(a, name), shift(b, name)
        bound = 1e-5 * float(x.norm() * y.norm() + 1)
        assert abs(inner(a.edits[name], b.edits[name]) - float((x * y).sum())) < bound


def test_a_product_by_hand():
    # Δ = [1 2; 3 4] with u = (1, 1)ᵀ, v = (1, 0): uvᵀ = [1 0; 1 0], so 1 + 3 = 4
    dense = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    low = LowRank(torch.ones(2, 1), torch.tensor([[1.0, 0.0]]))
    rows = Rows(torch.tensor([1]), torch.tensor([[0.0, 5.0]]))
    assert inner([dense], [low]) == inner([low], [dense]) == 4
    assert inner([dense], [rows]) == inner([rows], [dense]) == 20  # 4 · 5
    assert inner([low], [rows]) == 0
    assert inner([low], [low]) == 2
    assert inner([dense, low], [rows, low]) == 20 + 4 + 0 + 2


def test_factors_are_never_multiplied_out():
    size = 100_000  # multiplied out, such a product takes 40 GB
    a, b = (LowRank(tensor(i, size, 2), tensor(i + 9, 2, size)) for i in (0, 1))
    patch = Patch({NAMES[0]: (a,)}) + Patch({NAMES[0]: (b,)})
    assert patch.edits[NAMES[0]][0].up.shape == (size, 4)
    assert energies(patch)[NAMES[0]] > 0
    assert truncated(patch, 3)[1] < 1


# --- overlaps ---


@few
@given(mixed, mixed)
def test_an_overlaps_cosine_is_that_of_the_edits_multiplied_out(a: Patch, b: Patch):
    for found in overlaps(a, b):
        x, y = shift(a, found.name).flatten(), shift(b, found.name).flatten()
        assert found.cosine == pytest.approx(float(torch.cosine_similarity(x, y, 0)), abs=1e-5)


@few
@given(mixed, mixed)
def test_overlaps_together_give_the_cosine_of_the_whole_patches(a: Patch, b: Patch):
    x, y = (torch.cat([shift(p, n).flatten() for n in NAMES]) for p in (a, b))
    cosine, ours, theirs = overall(overlaps(a, b))
    assert cosine == pytest.approx(float(torch.cosine_similarity(x, y, 0)), abs=1e-5)
    common = [n for n in NAMES if n in a.edits and n in b.edits]
    for share, patch in ((ours, a), (theirs, b)):
        whole = sum(float(shift(patch, n).square().sum()) for n in NAMES)
        there = sum(float(shift(patch, n).square().sum()) for n in common)
        assert share == pytest.approx(there / whole, abs=1e-6)


def test_composing_says_where_patches_overlap_and_where_not():
    one = torch.zeros(SHAPE).index_fill(0, torch.tensor([0]), 1.0)
    a = Patch({NAMES[0]: (Dense(one),), NAMES[1]: (Dense(one),)})
    b = Patch({NAMES[0]: (Dense(one.flip(0)),), NAMES[1]: (Dense(3 * one),)})
    joint, (found,) = compose([a, b])  # in the first they move different rows
    assert torch.equal(joint.edits[NAMES[0]][0].delta, one + one.flip(0))
    assert (found.name, found.pair) == (NAMES[1], (0, 1))
    assert found.cosine == pytest.approx(1)
    assert found.shares == pytest.approx((1 / 2, 9 / 10))


def test_a_replacement_overlaps_without_a_cosine():
    gold = Patch({NAMES[0]: (Replacement(tensor(3, *SHAPE)),)})
    (found,) = compose([gold, Patch({NAMES[0]: (edit("dense", 1),)})])[1]
    assert found.notable
    assert found.cosine != found.cosine


def test_nothing_to_compose_is_refused():
    with pytest.raises(PalimpsestError, match="no patch to compose"):
        compose([])


@pytest.mark.parametrize("kind", ["dense", "lowrank", "rows"])
@pytest.mark.parametrize("other", ["dense", "lowrank", "rows"])
def test_patches_of_other_shapes_are_refused_by_name_and_shapes(kind: str, other: str):
    wide = {
        "dense": Dense(tensor(1, 5, 7)),
        "lowrank": LowRank(tensor(1, 5, 2), tensor(2, 2, 7)),
        "rows": Rows(torch.tensor([4]), tensor(1, 1, 7)),
    }
    with pytest.raises(PalimpsestError, match=r"unet\.a\.weight: .*[54]×[74].* [54]×[74]"):
        Patch({NAMES[0]: (edit(kind, 4),)}) + Patch({NAMES[0]: (wide[other],)})


# --- low rank ---


@few
@given(mixed, st.integers(1, 3))
def test_a_truncation_is_the_nearest_of_its_rank(patch: Patch, rank: int):
    assume(any(not isinstance(e, Rows) for es in patch.edits.values() for e in es))
    small, residual = truncated(patch, rank)
    lost = total = 0.0
    for name, edits in patch.edits.items():
        whole = shift(patch, name)
        total += float(whole.square().sum())
        if all(isinstance(e, Rows) for e in edits):
            assert torch.equal(shift(small, name), whole)
            continue
        (made,) = small.edits[name]
        assert isinstance(made, LowRank)
        assert made.up.shape[1] <= rank
        # Eckart and Young (1936): the least error is that of the singular values left out
        lost += float(torch.linalg.svdvals(whole)[rank:].square().sum())
        error = float((shift(small, name) - whole).square().sum())
        assert error == pytest.approx(
            float(torch.linalg.svdvals(whole)[rank:].square().sum()), abs=1e-4 * (1 + total)
        )
    assert residual == pytest.approx(sqrt(lost / total), abs=1e-4)


def test_what_is_of_low_rank_already_is_kept_to_the_bit():
    patch = Patch({NAMES[0]: (edit("lowrank", 1),)})  # of rank 2
    small, residual = truncated(patch, 2)
    assert residual == 0
    assert small.digest() == patch.digest()


def test_a_convolution_is_truncated_as_a_matrix():
    kernel = torch.einsum("o,ihw->oihw", tensor(1, 6), tensor(2, 3, 2, 2))  # of rank 1
    small, residual = truncated(Patch({NAMES[0]: (Dense(kernel),)}), 1)
    assert residual < 1e-6
    assert (small.edits[NAMES[0]][0].shift(kernel) - kernel).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("rank", "kind", "said"),
    [(0, "dense", "at least 1"), (5, "dense", "above 4"), (1, "gold", "replaced whole")],
)
def test_ranks_that_cannot_be_are_refused(rank: int, kind: str, said: str):
    gold = Replacement(tensor(3, *SHAPE))
    patch = Patch({NAMES[0]: (gold if kind == "gold" else edit(kind, 1),)})
    with pytest.raises(PalimpsestError, match=said):
        truncated(patch, rank)
