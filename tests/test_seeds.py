"""Numbers over seeds: intervals hold what they promise, and variance goes where it belongs."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from palimpsest.metrics import rates, seeds
from palimpsest.metrics.clusters import Cluster
from palimpsest.metrics.rates import Rate

JUDGED = st.sampled_from([True, False, None])


def alone(n: int) -> list[Cluster]:
    """Pictures that share neither prompt nor noise."""
    return [(i, i) for i in range(n)]


def drawn(rng: np.random.Generator, j: int, n: int, a: float, b: float) -> np.ndarray:
    """μ = 0, seeds and pictures of given deviations, and a rest of 1, in (j, n)."""
    return a * rng.normal(size=(j, 1)) + b * rng.normal(size=(1, n)) + rng.normal(size=(j, n))


# --- by hand ---


def test_mean_squares_by_hand():
    # rows 1 1 0 / 1 0 0: seeds' means ⅔, ⅓, pictures' 1, ½, 0, mean ½. Seeds 3·(2·1/36)/1 = 1/6,
    # pictures 2·(2·¼)/2 = ½; residuals ±1/6 four times, ±1/3 twice: (4/36 + 2/9)/2 = 1/6.
    found = seeds.components([[1, 1, 0], [1, 0, 0]])
    assert (found.of_seeds, found.of_pictures, found.rest) == pytest.approx((1 / 6, 1 / 2, 1 / 6))
    assert (found.seed, found.picture) == pytest.approx((0, 1 / 6))
    assert found.gain == pytest.approx((1 / 6 + 1 / 6) / (1 / 6 + 1 / 12))


def test_runs_without_pictures_by_hand():
    each = [Rate(value, math.nan, math.nan, 40) for value in (1.0, 2.0, 3.0)]
    found = seeds.over_runs(each)
    half = t.ppf(0.975, 2) * 1 / math.sqrt(3)  # s = 1 of three
    assert (found.rate.value, found.seeds, found.sd_seeds) == pytest.approx((2, 3, 1))
    assert (found.rate.low, found.rate.high) == pytest.approx((2 - half, 2 + half))
    alike = seeds.over_runs([Rate(0.5, 0.4, 0.6, 40)] * 3).rate
    assert (alike.low, alike.high) == pytest.approx((0.4, 0.6)), "the pictures' part stays"


# --- one seed, and seeds that say the same ---


@given(st.lists(st.tuples(JUDGED, st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_one_seed_has_the_interval_of_its_pictures(rows: list):
    says, clusters = [row[0] for row in rows], [row[1:] for row in rows]
    found = seeds.share([[None if s is None else float(s) for s in says]], clusters)
    assert found.seeds == 1
    assert repr(found.rate) == repr(rates.rate(says, clusters))
    values = [math.nan if s is None else float(s) for s in says]
    mean = seeds.mean([[None if s is None else float(s) for s in says]], clusters)
    assert repr(mean.rate) == repr(rates.mean(values, clusters))


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(2, 4))
def test_seeds_that_say_the_same_are_worth_one(says: list[bool], j: int):
    """Copies of a run teach nothing: the interval is at most a little narrower than one run's."""
    found = seeds.share([[float(s) for s in says]] * j, alone(len(says)))
    one = rates.rate(says, alone(len(says)))
    assert found.rate.value == pytest.approx(one.value)
    assert found.rate.high - found.rate.low >= (one.high - one.low) * (1 - 1e-9)
    assert found.sd_seeds == pytest.approx(0, abs=1e-6)
    if 0 < one.value < 1:
        assert found.of_seeds == pytest.approx(0, abs=1e-6)


def test_all_and_none_keep_an_interval():
    for value in (0.0, 1.0):
        found = seeds.share([[value] * 40] * 3, alone(40)).rate
        one = rates.wilson(int(40 * value), 40)
        assert found.value == value
        assert (found.low, found.high) == pytest.approx((one.low, one.high), abs=1e-6)


def test_one_miss_does_not_narrow_what_none_leaves():
    """With every picture right with every seed, nothing shows that seeds fail on other pictures."""
    whole = [[1.0] * 40 for _ in range(3)]
    missed = [[0.0, *row[1:]] if k == 0 else row for k, row in enumerate(whole)]
    none, one = (seeds.share(table, alone(40)).rate for table in (whole, missed))
    assert one.low < none.low + 0.01


@given(
    st.integers(2, 4).flatmap(
        lambda j: st.lists(
            st.tuples(st.lists(JUDGED, min_size=j, max_size=j), st.integers(0, 3)), min_size=1
        )
    )
)
def test_an_interval_holds_its_share_whatever_was_said(rows: list):
    table = [[None if s is None else float(s) for s in row] for row, _ in rows]
    clusters = [(prompt, i) for i, (_, prompt) in enumerate(rows)]
    found = seeds.share(list(zip(*table, strict=True)), clusters)
    whole = [row for row in table if None not in row]
    assert (found.rate.n, found.rate.missing) == (len(whole), len(table) - len(whole))
    if whole:
        assert 0 <= found.rate.low <= found.rate.value <= found.rate.high <= 1
        assert found.rate.value == pytest.approx(np.mean(whole))


# --- simulations of known components ---


def test_components_are_found_again():
    """Over many layouts the estimates' means are the variances that they were drawn with."""
    rng = np.random.default_rng(0)
    found = [seeds.components(drawn(rng, 4, 30, 0.5, 1.5).tolist()) for _ in range(300)]
    seed = np.mean([(c.of_seeds - c.rest) / 30 for c in found])
    picture = np.mean([(c.of_pictures - c.rest) / 4 for c in found])
    rest = np.mean([c.rest for c in found])
    assert (seed, picture, rest) == pytest.approx((0.25, 2.25, 1.0), rel=0.1)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0.3, 1), (1, 0.5)])
def test_means_are_covered(a: float, b: float):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        found = seeds.mean(drawn(rng, 3, 40, a, b).tolist(), alone(40)).rate
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 0.5), (0, 3, 0.5), (0.3, 1, 0.9), (0.7, 0.7, 0.9), (0, 3, 0.98)]
)
def test_shares_are_covered(a: float, b: float, p: float):
    """Pictures count where a normal of known variance is above what makes p of them."""
    rng, hits = np.random.default_rng(2), 0
    above = NormalDist().inv_cdf(p) * math.sqrt(1 + a * a + b * b)
    for _ in range(400):
        table = (drawn(rng, 3, 40, a, b) > -above).astype(float)
        found = seeds.share(table.tolist(), alone(40)).rate
        hits += found.low <= p <= found.high
    assert 0.92 <= hits / 400 <= 1


def test_pictures_of_one_prompt_widen_the_interval():
    rng = np.random.default_rng(3)
    prompts = rng.normal(size=(1, 8))
    table = (np.repeat(prompts, 6, axis=1) + 0.3 * rng.normal(size=(3, 48)) > 0).astype(float)
    shared = seeds.share(table.tolist(), list(product(range(8), range(6)))).rate
    own = seeds.share(table.tolist(), alone(48)).rate
    assert shared.high - shared.low > 1.5 * (own.high - own.low)
