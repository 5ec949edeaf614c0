"""Numbers against hand computation and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import metrics


def test_wilson_against_a_worked_example():
    # 81 of 263: the worked example of Newcombe 1998 (Statistics in Medicine 17, table I, case a)
    rate = metrics.wilson(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)


def test_wilson_with_no_success_has_a_closed_form():
    z2 = metrics.Z_95**2
    rate = metrics.wilson(0, 20)
    assert rate.low == 0
    assert rate.high == pytest.approx(z2 / (20 + z2))


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_rate_and_mirrors(hits: int, misses: int):
    rate, mirror = metrics.wilson(hits, hits + misses), metrics.wilson(misses, hits + misses)
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
    found = metrics.unlearning("object", "cat", asks, labels)
    assert (found["UA"].value, found["UA"].n) == (1 / 2, 2)
    assert (found["IRA"].value, found["IRA"].n) == (1 / 2, 2)  # owl right, car wrong
    assert (found["CRA"].value, found["CRA"].n) == (2 / 3, 3)  # neon, mira right; photo wrong


def test_a_domain_of_one_has_no_ira():
    found = metrics.unlearning(
        "hazard", "hazard sign", [{"hazard": "hazard sign"}], {"hazard": ["none of these"]}
    )
    assert "IRA" not in found
    assert found["UA"].value == 1


def test_frechet_distance_of_two_gaussians():
    # |μ₁−μ₂|² + (σ₁−σ₂)² in each dimension, for diagonal covariances
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    y = 2 * (x - x.mean(0)) + x.mean(0) + torch.tensor([3.0, 0, 0])
    assert metrics.frechet(x, y) == pytest.approx(9 + 3 * 1, rel=1e-4)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-4)


def test_a_mean_with_students_interval():
    # 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653
    found = metrics.mean([1.0, 2.0, 3.0, math.nan])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
