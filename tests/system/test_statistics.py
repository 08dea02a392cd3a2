"""The report's statistics against values worked out by hand and against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.system.statistics import (
    auroc,
    mean,
    roc_curve,
    sample_deviation,
    wilson_interval,
)


def test_mean_and_sample_deviation_by_hand():
    # Mean 5; squared distances 9+1+1+9 = 20; 20 / (4-1) = 6.667; its root 2.582.
    values = [2.0, 4.0, 6.0, 8.0]
    assert mean(values) == 5.0
    assert sample_deviation(values) == pytest.approx(math.sqrt(20 / 3))


def test_one_value_has_no_deviation_and_none_has_no_mean():
    assert sample_deviation([0.7]) is None and sample_deviation([]) is None
    assert math.isnan(mean([]))
    assert math.isnan(mean([0.7, math.nan]))


def test_auroc_by_hand_with_ties_as_half():
    # Positives 0.9, 0.5, 0.2 against negatives 0.5, 0.1. Pairs won: 0.9 two; 0.5 one and a half
    # (a tie with 0.5); 0.2 one. 4.5 of 6.
    scores, truth = [0.9, 0.5, 0.2, 0.5, 0.1], [True, True, True, False, False]
    assert auroc(scores, truth) == 4.5 / 6


def test_auroc_ends():
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert auroc([7, 7, 7], [0, 1, 1]) == 0.5
    assert math.isnan(auroc([1, 2], [True, True])) and math.isnan(auroc([1, 2], [False, False]))
    assert math.isnan(auroc([], []))


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_won_and_the_area_under_the_roc(pairs):
    s, y = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if y.all() or not y.any():
        assert math.isnan(auroc(s, y))
        return
    won = [(p > n) + 0.5 * (p == n) for p in s[y] for n in s[~y]]
    assert auroc(s, y) == pytest.approx(sum(won) / len(won))
    false, true = roc_curve(s, y)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)  # ties are diagonals: half
    assert area == pytest.approx(auroc(s, y))


def test_roc_by_hand_and_thinned():
    false, true = roc_curve([3, 2, 2, 1], [True, True, False, False])
    assert false.tolist() == [0, 0, 0.5, 1] and true.tolist() == [0, 0.5, 1, 1]
    rng = np.random.default_rng(0)
    false, true = roc_curve(rng.random(5000), rng.random(5000) < 0.4, points=100)
    assert len(false) == 100
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()


def test_scores_without_rank_or_partner_are_refused():
    with pytest.raises(ValueError, match="nan"):
        auroc([0.1, math.nan], [True, False])
    with pytest.raises(ValueError, match="2 scores for 3 truths"):
        roc_curve([0.1, 0.2], [True, False, True])


def test_wilson_interval_against_published_values():
    # 8 of 10 at 95 %: 0.490 to 0.943 (Wilson 1927's formula, worked out by hand).
    low, high = wilson_interval([8, 0, 0], [10, 10, 0])
    assert low[0] == pytest.approx(0.4902, abs=1e-4) and high[0] == pytest.approx(0.9433, abs=1e-4)
    # 0 of 10: 0 to z²/(10+z²) = 3.8415/13.8415.
    assert low[1] < 1e-12 and high[1] == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert (low[2], high[2]) == pytest.approx((0, 1))
