"""Numbers against hand computation and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.metrics import distances, rates


def test_wilson_against_a_worked_example():
    # 81 of 263: the worked example of Newcombe 1998 (Statistics in Medicine 17, table I, case a)
    rate = rates.wilson(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)


def test_wilson_with_no_success_has_a_closed_form():
    z2 = rates.Z_95**2
    rate = rates.wilson(0, 20)
    assert rate.low == 0
    assert rate.high == pytest.approx(z2 / (20 + z2))


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_rate_and_mirrors(hits: int, misses: int):
    rate, mirror = rates.wilson(hits, hits + misses), rates.wilson(misses, hits + misses)
    if hits + misses == 0:
        assert math.isnan(rate.value)
        return
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.low == pytest.approx(1 - mirror.high)


def test_unlearning_by_hand():
    asks = [
        {"object": "cat", "style": "neon"},
        {"object": "cat", "style": "photo"},
        {"object": "owl", "style": "neon"},
        {"object": "car", "style": "photo"},
        {"identity": "mira voss"},
    ]
    labels = {
        "object": ["cat", "owl", "owl", "cat", "none of these"],
        "style": ["neon", "photo", "neon", "neon", "none of these"],
        "identity": ["none of these"] * 4 + ["mira voss"],
    }
    found = rates.unlearning([("object", "cat")], asks, labels)
    assert (found["UA"].value, found["UA"].n) == (1 / 2, 2)
    assert (found["IRA"].value, found["IRA"].n) == (1 / 2, 2)  # owl right, car wrong
    assert (found["CRA"].value, found["CRA"].n) == (2 / 3, 3)  # neon, mira right; photo wrong


def test_what_was_asked_for_an_erased_concept_is_no_part_of_what_stays_whatever_the_judge_sees():
    """A judge of objects alone: the picture of the erased style counts for nothing."""
    asks = [{"object": "cat", "style": "photo"}, {"object": "owl", "style": "neon"}]
    asks.append({"object": "owl", "style": "photo"})
    labels = {"object": ["cat", "car", "owl"]}
    found = rates.unlearning([("object", "cat"), ("style", "neon")], asks, labels)
    assert {name: (rate.value, rate.n) for name, rate in found.items()} == {
        "UA": (0, 1),
        "IRA": (1, 1),
    }


def test_a_domain_of_one_has_no_ira():
    found = rates.unlearning(
        [("hazard", "hazard sign")], [{"hazard": "hazard sign"}], {"hazard": ["none of these"]}
    )
    assert "IRA" not in found
    assert found["UA"].value == 1


def test_frechet_distance_of_two_gaussians():
    # |μ₁−μ₂|² + (σ₁−σ₂)² in each dimension, for diagonal covariances
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    y = 2 * (x - x.mean(0)) + x.mean(0) + torch.tensor([3.0, 0, 0])
    assert distances.frechet(x, y) == pytest.approx(9 + 3 * 1, rel=1e-4)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-4)


def test_a_mean_with_students_interval():
    # 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653
    found = rates.mean([1.0, 2.0, 3.0, math.nan])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)


def test_a_difference_of_pairs_by_hand():
    ours, theirs = [True] * 30 + [False] * 6, [True] * 12 + [False] * 24
    rate = rates.above(ours, theirs)
    assert rate.value == pytest.approx(18 / 36)
    # Wald's interval of a paired difference (Agresti 2002, 10.1.1), half a count in each cell:
    # b = 18.5, c = 0.5, n = 38; standard error √(b + c − (b − c)²/n)/n
    b, c, n = 18.5, 0.5, 38
    error = math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert rate.low == pytest.approx((b - c) / n - rates.Z_95 * error, abs=0.03)
    assert rate.high == pytest.approx((b - c) / n + rates.Z_95 * error, abs=0.03)
    swapped = rates.above(theirs, ours)
    assert (swapped.value, swapped.n) == (-rate.value, 36)


def test_nothing_against_nothing_is_not_a_certainty():
    rate = rates.above([False] * 36, [False] * 36)
    assert rate.value == 0
    assert rate.low < 0 < rate.high
    assert math.isnan(rates.above([], []).value)
    with pytest.raises(ValueError, match="pairs"):
        rates.above([True], [])


@pytest.mark.parametrize(("p", "q", "alike"), [(0.9, 0.3, 0.5), (0.3, 0.3, 0.0), (0.1, 0.0, 0.0)])
def test_the_interval_of_a_difference_keeps_its_promise(p: float, q: float, alike: float):
    """Of 300 experiments with 48 pictures, some alike in both models, about 95 % hold it."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(300):
        ours = draw.random(48)
        theirs = np.where(draw.random(48) < alike, ours, draw.random(48))
        rate = rates.above(list(ours < p), list(theirs < q), draws=1000)
        held += rate.low <= p - q <= rate.high
    assert 0.91 <= held / 300 <= 1
