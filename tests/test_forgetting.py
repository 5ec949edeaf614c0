"""Forgetting profiles by hand, and what must hold of every verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.core.errors import PalimpsestError
from palimpsest.metrics import profile as forgetting
from palimpsest.metrics import relearning
from palimpsest.metrics.profile import Attack, profile, reached, shared_budget, verdict
from palimpsest.metrics.rates import wilson
from palimpsest.metrics.relearning import CurvePoint

STEPS = (0, 10, 20, 40)


def curve(*hits: int, n: int = 40, per_step: int = 4, steps=STEPS) -> list[CurvePoint]:
    """The first `hits` of `n` pictures show the concept after each step."""
    return [
        CurvePoint(s, per_step * s, wilson(h, n), tuple(i < h for i in range(n)))
        for s, h in zip(steps, hits, strict=False)
    ]


def attack(erased, gold=(), unedited=None) -> Attack:
    return Attack("MemoRa", erased, gold, curve(40) if unedited is None else unedited)


# --- by hand ---


def test_evaluations_to_half_lie_on_the_line_between_two_points():
    """0 of 40 at 40 evaluations, 30 of 40 at 80: 20 of 40 at 40 + 40·20/30 = 66.7."""
    found = reached(curve(0, 0, 30, 40), [1.0] * 40, 0.5)
    assert found.evaluations == pytest.approx(40 + 40 * 20 / 30)
    assert 40 < found.low < found.evaluations < found.high < 80
    most = reached(curve(0, 0, 30, 40), [1.0] * 40, 0.9)  # 36 of 40: 80 + 80·6/10
    assert most.evaluations == pytest.approx(128)


def test_what_is_not_reached_is_censored():
    never = reached(curve(0, 0, 2, 4), 1.0, 0.5)
    assert never.evaluations == never.low == never.high == math.inf
    assert str(never) == "> 160 [> 160, > 160]"
    perhaps = reached(curve(0, 0, 4, 19), 1.0, 0.5)
    assert math.isinf(perhaps.evaluations)
    assert perhaps.low < 160, "some samples of the pictures come to half"
    assert math.isinf(perhaps.high)


def test_half_is_half_of_what_the_original_could():
    """The unedited model has 20 of 40: 10 of 40 are half of it, reached at 40·10/20."""
    assert reached(curve(0, 20), curve(20)[0].says, 0.5).evaluations == pytest.approx(20)
    assert reached(curve(12), 0.5, 0.5).evaluations == 0, "it never went"


def test_an_empty_curve_says_nothing():
    assert profile([attack([]), attack([], curve(0, 1))]) == []
    assert verdict([]).word == "undecided"
    assert relearning.won_back([]) is None
    assert relearning.advantage([], []) is None
    assert math.isnan(reached([], 1.0, 0.5).evaluations)


def test_the_shared_budget_is_the_smallest_that_was_spent():
    long, short = curve(0, 1, 2, 3), curve(0, 1, 2)
    assert shared_budget([attack(long, long), attack(short, long)]) == 80
    won = curve(0, 40)
    assert shared_budget([attack(long), attack(won)]) == 160, "nothing was left to search for"
    with pytest.raises(PalimpsestError, match="0 gradient evaluations"):
        shared_budget([attack([])])
    with pytest.raises(PalimpsestError, match="budget is 0"):
        profile([attack(long)], 0)
    (line,) = profile([attack(long)], 100)
    assert len(line.rates) == 3, "what came at 160 evaluations does not count"


def test_a_search_that_ended_won_stays_won():
    """Against a gold that went on searching: 40 of 40 less 0, 10 and 20 of 40."""
    above = dict(relearning.at_each_step(curve(0, 40), curve(0, 0, 10, 20)))
    assert [above[s].value for s in STEPS] == [0, 1, 0.75, 0.5]


def test_what_spends_no_gradient_has_no_place_on_the_scale():
    assert profile([attack(curve(0, 40, per_step=0))]) == []


def test_a_search_that_is_won_before_its_first_step_is_no_secret():
    """The plain prompts draw it: no step was taken, and nothing was forgotten."""
    lines = profile([attack(curve(40), curve(0, 0, 0, 0)), attack(curve(0, 0, 0, 0))])
    assert [line.reached[0].evaluations for line in lines] == [0, math.inf]
    assert verdict(lines).word == "short-term"


def test_the_verdict_says_so_where_an_erasure_never_held():
    shown = verdict(profile([attack(curve(30, 30, 30, 30), curve(0, 0, 0, 0))]))
    assert shown.word == "short-term"
    assert "before the first step" in shown.why
    won = verdict(profile([attack(curve(0, 30, 30, 30), curve(0, 0, 0, 0))]))
    assert "MemoRa surely brought half" in won.why


# --- verdicts ---


def word(erased, gold=(), **rest) -> str:
    return verdict(profile([attack(erased, gold)]), **rest).word


def test_the_four_verdicts():
    none, n = (0, 0, 0, 0), 100
    original = curve(n, n=n)

    def said(erased, gold) -> str:
        ours, theirs = curve(*erased, n=n), curve(*gold, n=n) if gold else ()
        return verdict(profile([attack(ours, theirs, original)])).word

    assert said(none, none) == "gone"
    assert said((0, 10, 80, 95), (0, 5, 20, 30)) == "short-term"
    assert said(none, (0, 60, 90, 100)) == "long-term", "pushed below gold, so not like gold"
    assert said(none, ()) == "long-term", "it held, but without gold nobody can say gone"
    assert said((0, 10, 80, 95), ()) == "undecided", "without gold it may have been taught"
    assert said((0, 5, 45, 52), (0, 0, 10, 20)) == "undecided", "half may be back or not"


def test_what_is_learnt_at_golds_pace_is_gone():
    """The very same pictures on both: however much comes back was taught."""
    same = curve(0, 5, 20, 39)
    assert word(same, same) == "gone"


def test_gold_must_be_measured_at_every_budget():
    """Alike at the two steps that both have, but nobody looked at gold after the others."""
    none = curve(0, 0, 0, 0)
    assert word(none, none[:2]) == "long-term"


def test_a_verdict_says_what_came_and_how_it_stands_to_gold():
    none, slow = curve(0, 0, 0, 0), curve(0, 0, 5, 30)
    fast = curve(0, 30, 38, 40)
    assert "brought half of it back within the budget, and without" in why(none, ())
    assert "no recovery brought half" in why(none, fast)
    assert "came no sooner than gold learns it, yet it stands below gold" in why(slow, fast)


def why(erased, gold) -> str:
    return verdict(profile([attack(erased, gold)])).why


def test_few_pictures_are_never_equivalence():
    few = curve(0, 0, 0, 0, n=4)
    assert word(few, few) != "gone"


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.0, math.nan])
def test_a_margin_outside_its_range_is_refused(delta: float):
    with pytest.raises(PalimpsestError, match="delta"):
        verdict([], delta)


COUNTS = st.lists(st.integers(0, 40), min_size=4, max_size=4)
PAIRS = st.tuples(COUNTS, COUNTS)


@settings(max_examples=12, deadline=None)
@given(PAIRS)
def test_gone_needs_every_interval_within_delta(pair):
    (line,) = profile([attack(curve(*pair[0]), curve(*pair[1]))])
    inside = all(r.low >= -0.15 and r.high <= 0.15 for _, r in line.above)
    assert (verdict([line]).word == "gone") == inside
    if abs(pair[0][-1] - pair[1][-1]) > 0.15 * 40:
        assert verdict([line]).word != "gone", "no want of significance makes it gone"


@settings(max_examples=12, deadline=None)
@given(PAIRS, st.sampled_from((0.05, 0.1, 0.2, 0.4)))
def test_a_wider_margin_takes_gone_back_from_nobody(pair, delta):
    lines = profile([attack(curve(*pair[0]), curve(*pair[1]))])
    if verdict(lines, delta).word == "gone":
        assert verdict(lines, 2 * delta).word == "gone"


@settings(max_examples=12, deadline=None)
@given(PAIRS, PAIRS)
def test_another_attack_overturns_gone_but_never_short_term(first, second):
    one, two = (profile([attack(curve(*a), curve(*b))]) for a, b in (first, second))
    both = verdict([*one, *two]).word
    words = {verdict(lines).word for lines in (one, two)}
    if "short-term" in words:
        assert both == "short-term"
    assert (both == "gone") == (words == {"gone"})
    assert both == verdict([*two, *one]).word, "the order does not matter"


@settings(max_examples=12, deadline=None)
@given(PAIRS)
def test_without_gold_it_is_neither_gone_nor_short_term(pair):
    assert word(curve(*pair[0])) in ("long-term", "undecided")


def test_the_record_says_delta_n_and_budget():
    found = verdict(profile([attack(curve(0, 0, 0, 0), curve(0, 0, 0, 0))]), 0.2)
    assert (found.delta, found.n, found.budget) == (0.2, 40, 160)
    line = profile([attack(curve(0, 0, 0, 0))])[0]
    assert verdict([replace(line, original=math.nan)]).word == "undecided"
    assert forgetting.SHARES == (0.5, 0.9)
