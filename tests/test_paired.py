"""Two raters, and two methods on the same prompts and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from test_intervals import draw, grid

from palimpsest.metrics.agreement import kappa
from palimpsest.metrics.paired import difference, holm, sign_flip, t_test

# --- κ ---


def test_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5 · 0.6 + 0.5 · 0.4 = 0.5
    ours = ["yes"] * 25 + ["no"] * 25 + [None, "yes"]
    theirs = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15 + ["no", None]
    found = kappa(ours, theirs)
    assert found.value == pytest.approx(0.4)
    assert (found.n, found.missing) == (50, 2)
    error = math.sqrt(0.7 * 0.3 / 50) / 0.5  # Cohen 1960, eq. 7
    assert found.low == pytest.approx(0.4 - 1.96 * error, abs=0.05)
    assert found.high == pytest.approx(0.4 + 1.96 * error, abs=0.05)


def test_kappa_of_three_labels_by_hand():
    # rows a: 2 1 0, b: 0 2 1, c: 1 0 2; margins all 3: p_o = 6/9, p_e = 1/3
    found = kappa(list("aaabbbccc"), list("aabbbcacc"))
    assert found.value == pytest.approx(0.5)


def test_the_ends_of_kappa():
    alike = kappa(["a", "b"] * 12, ["a", "b"] * 12)
    assert alike.value == alike.high == 1
    assert 0.5 < alike.low < 1, "24 pictures are no certainty"
    assert kappa(["a", "b"] * 12, ["b", "a"] * 12).value == -1
    one = kappa(["a"] * 9, ["a"] * 9)
    assert math.isnan(one.value), "nothing tells agreement from habit"
    assert one.n == 9
    constant = kappa(["a", "b"] * 4, ["a"] * 8)
    assert constant.value == 0
    assert math.isnan(constant.low), "no sample could differ, which is no certainty"
    nothing = kappa([None], ["a"])
    assert (nothing.n, nothing.missing) == (0, 1)
    assert math.isnan(kappa(["a", "b"], ["a", "b"]).low), "too few"
    with pytest.raises(ValueError, match="pairs"):
        kappa(["a"], [])


def test_kappa_takes_a_prompts_pictures_together():
    ours, theirs = (
        ["a", "b", "a", "a", "b", "b", "a", "b"],
        ["a", "b", "b", "a", "b", "a", "a", "b"],
    )
    shared = kappa(ours * 6, theirs * 6, [(i, k) for k in range(6) for i in range(8)])
    apart = kappa(ours * 6, theirs * 6)
    assert shared.value == apart.value
    assert shared.high - shared.low > 1.5 * (apart.high - apart.low)


@given(st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", None])] * 2, st.integers(0, 4))))
def test_kappa_lies_in_its_range(rows):
    found = kappa([r[0] for r in rows], [r[1] for r in rows], [(r[2], 0) for r in rows], draws=50)
    assert found.n + found.missing == len(rows)
    if not math.isnan(found.low):
        assert -1 <= found.low <= found.value <= found.high <= 1


# --- tests of pairs ---


def test_the_flips_of_few_prompts_are_counted():
    clusters = [(i, 0) for i in range(5)]
    assert sign_flip([1.0] * 5, clusters) == pytest.approx(2 / 32)
    # sums 3, −1, 1: of ±3 ± 1 ± 1 six of eight are as far from 0 as 3
    assert sign_flip([3.0, -1.0, 1.0], clusters[:3]) == pytest.approx(6 / 8)
    assert sign_flip([0.0] * 5, clusters) == 1
    many = sign_flip([1.0] * 30, [(i, 0) for i in range(30)])
    assert many == pytest.approx(2 / 10_001), "the one seen counts among those drawn"


def test_what_a_prompt_says_six_times_counts_once():
    differences = [1.0 if prompt < 5 else 0.0 for prompt, _ in grid(8, 6)]
    assert sign_flip(differences, grid(8, 6)) == pytest.approx(2 / 32)


def test_chance_is_found_as_often_as_promised_and_a_difference_is_seen():
    rng, clusters = np.random.default_rng(0), grid(18, 3)
    alike, apart = [], []
    for _ in range(200):
        ours, theirs = (draw(rng, 18, 3, (0.3, 0.0)) for _ in range(2))
        alike.append(sign_flip((1.0 * (ours < 0) - (theirs < 0)).tolist(), clusters))
        if len(apart) < 50:
            apart.append(sign_flip((1.0 * (ours < 0.8) - (theirs < -0.8)).tolist(), clusters))
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(alike) <= level) <= level + 2 * math.sqrt(level * (1 - level) / 200)
    assert np.mean(np.array(alike) <= 0.5) > 0.35
    assert np.mean(np.array(apart) <= 0.05) > 0.95


def test_chance_is_no_difference_where_methods_share_seeds():
    """Flips of prompts alone would call chance a difference in 13 % of these suites."""
    rng, clusters = np.random.default_rng(3), grid(18, 3)
    found = []
    for _ in range(150):
        ours, theirs = (draw(rng, 18, 3, (0.1, 0.1)) < 0 for _ in range(2))
        found.append(difference(1.0 * ours, 1.0 * theirs, clusters).p)
    assert np.mean(np.array(found) <= 0.05) <= 0.08


def test_a_t_test_by_hand():
    differences, clusters = [0.5, 1.0, 0.0, 0.5, 1.0], [(i, 0) for i in range(5)]
    # mean 0.6, s² = 0.175, t = 0.6/√(0.175/5) at 4 degrees of freedom
    assert t_test(differences, clusters) == pytest.approx(2 * t.sf(0.6 / math.sqrt(0.035), 4))
    assert t_test([1.0] * 5, clusters) == 0
    assert t_test([0.0] * 5, clusters) == 1
    assert t_test([1.0], clusters[:1]) == 1


def test_a_difference_by_hand():
    ours, theirs = [1.0] * 48, [float(i % 4 == 0) for i in range(48)]
    found = difference(ours, theirs, grid(8, 6))
    assert found.rate.value == 0.75
    assert 0 < found.rate.low < 0.75 < found.rate.high <= 1
    assert found.p == pytest.approx(2 / 2**8)


def test_holm_against_a_worked_example():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, the last not below
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
