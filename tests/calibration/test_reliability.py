"""Thresholds from the labels: planted cases whose answer is known."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.calibration import ranks
from ferkd.calibration.ranks import order_statistics
from ferkd.calibration.reliability import (
    Reliability,
    easy_cut,
    isotonic,
    propose,
    reliability,
    weights_of,
)
from ferkd.system.statistics import wilson_interval


def test_isotonic_by_hand():
    """3, 1 pool to 2 (weights 1, 1); with weights 1, 3 to 1.5; then 2 stays above."""
    assert isotonic(np.array([1.0, 3, 1, 4]), np.ones(4)).tolist() == [1, 2, 2, 4]
    assert isotonic(np.array([3.0, 1, 2]), np.array([1.0, 3, 1])).tolist() == [
        1.5,
        1.5,
        2,
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_isotonic_is_monotone_and_keeps_the_mean(values):
    out = isotonic(np.array(values), np.ones(len(values)))
    assert (np.diff(out) >= -1e-12).all() and out.mean() == pytest.approx(np.mean(values))


def test_easy_cut_by_hand():
    """1 - s = .0, .1, .2, .7, sum 1: the first crop holds 0, the first two .1 of the signal."""
    scores = np.array([[1.0, 0.9], [0.8, 0.3]])
    assert easy_cut(scores, 0.05) == pytest.approx(0.9)  # 1.0 goes
    assert easy_cut(scores, 0.1 + 1e-6) == pytest.approx(0.8)  # 1.0 and 0.9 go
    assert easy_cut(np.ones((2, 2))) == 1.0  # nothing to tell apart: nothing is cut


def test_planted_reliability_is_found():
    """Answers are right with probability s (5 classes): r crosses 1/2 at .5, chance .2 at .2."""
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 30))
    correct = rng.random(scores.shape) < scores
    evidence = propose(scores, correct, np.ones(4000, bool), 5)
    low, middle, top = evidence.thresholds
    assert low == pytest.approx(0.2, abs=0.03)
    assert middle == pytest.approx(0.5, abs=0.03)
    assert top == pytest.approx(0.9, abs=0.01)  # (1 - t)^2 = 1 % of the signal


def test_the_reliable_rule_discards_below_one_half_and_nothing_else():
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 30))
    correct = rng.random(scores.shape) < scores
    low, middle, top = propose(scores, correct, np.ones(4000, bool), 5, "reliable").thresholds
    assert low == middle == pytest.approx(0.5, abs=0.03) and top == 1.0
    unknown = propose(scores, correct, np.zeros(4000, bool), 5, "reliable")
    assert unknown.thresholds == (0.0, 0.0, 1.0)


def test_a_teacher_that_is_always_right_has_no_hard_region():
    scores = np.random.default_rng(0).uniform(0.3, 1, (50, 10))
    evidence = propose(scores, np.ones(scores.shape, bool), np.ones(50, bool), 5)
    assert evidence.thresholds[:2] == (0.0, 0.0)


def test_a_teacher_at_chance_is_not_trusted_anywhere():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.3, 1, (400, 10))
    evidence = propose(scores, rng.random(scores.shape) < 0.2, np.ones(400, bool), 5)
    low, middle, top = evidence.thresholds
    assert middle == top and low <= middle


def test_without_ground_truth_only_the_easiest_go():
    scores = np.random.default_rng(0).random((40, 10))
    evidence = propose(scores, np.zeros(scores.shape, bool), np.zeros(40, bool), 5)
    assert evidence.thresholds[:2] == (0.0, 0.0) and "no ground truth" in evidence.reason


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_any_store_gives_ordered_thresholds(images, crops, classes, seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random((images, crops)), 1)  # with ties
    has_target = rng.random(images) < 0.7
    low, middle, top = propose(
        scores, rng.random(scores.shape) < 0.5, has_target, classes
    ).thresholds
    assert 0 <= low <= middle <= top <= 1


def test_bins_hold_all_crops():
    rng = np.random.default_rng(1)
    curve = reliability(rng.random((7, 3)), rng.random((7, 3)) < 0.5, bins=5)
    assert curve.crops.sum() == 21 and (np.diff(curve.s) > 0).all()


def curve_of(s: list[float], rate: list[float], crops: list[int]) -> Reliability:
    r = np.array(rate)
    return Reliability(np.array(s), r, r, r, np.array(crops))


def test_weights_lie_on_the_curve_by_hand():
    """Between .2 (rate 0) and .6 (rate .8) the slope is 2: .3 gives .2, so 51 of 255."""
    curve = curve_of([0.2, 0.6], [0.0, 0.8], [5, 5])
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.6, 0.99], [0.5, np.nan, 0.35]], np.float32)
    expected = [[0, 0, 51], [102, 204, 204], [153, 255, 76]]  # .35: .3 * 255 = 76.5
    weights = weights_of(curve, scores)
    assert weights.dtype == np.uint8
    assert np.abs(weights.astype(int) - expected).max() <= 1
    assert weights[1].tolist() == [102, 204, 204] and weights[2, 1] == 255


def test_bins_of_one_score_weigh_in_by_their_crops():
    """.2 on 3 crops and .6 on 1 are .3 together, which is 76.5 of 255."""
    curve = curve_of([0.5, 0.5], [0.2, 0.6], [3, 1])
    assert weights_of(curve, np.array([[0.5, 0.1, 0.9]])).tolist()[0] in ([76] * 3, [77] * 3)


def test_the_weights_of_a_sure_teacher_are_whole():
    scores = np.random.default_rng(0).random((50, 4))
    curve = reliability(scores, np.ones(scores.shape, bool))
    assert (weights_of(curve, scores) == 255).all()


def test_none_keeps_all_and_still_tells_the_curve():
    scores = np.random.default_rng(0).random((50, 4))
    evidence = propose(scores, scores > 0.5, np.ones(50, bool), 5, "none")
    assert evidence.thresholds == (0.0, 0.0, 1.0) and evidence.reliability is not None


def test_pools_count_the_images_of_all_their_bins_by_hand():
    """Wrong at .1 and .2 (images 0, 1), right at .5, .8 (image 0) and .9 (image 2)."""
    scores = np.array([[0.1, 0.5, 0.8], [0.2, 0.15, 0.12], [0.9, 0.91, 0.95]])
    curve = reliability(scores, scores > 0.3)
    n = {0.0: 2, 1.0: 2}  # the pools hold crops of images {0, 1} and {0, 2}
    for rate, low, high in zip(curve.rate, curve.low, curve.high, strict=True):
        expected = wilson_interval([rate * n[rate]], [n[rate]])
        assert (low, high) == pytest.approx((expected[0][0], expected[1][0]))


def sorted_reliability(scores, correct, bins):
    """The definition: sort, cut into bins of equal count, pool, count images."""
    order = np.argsort(scores, axis=None, kind="stable")
    s, right = scores.ravel()[order].astype(np.float64), correct.ravel()[order]
    edges = np.unique(np.linspace(0, len(s), min(bins, len(s)) + 1).astype(int))
    cuts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    crops = np.diff(edges)
    rate = isotonic(np.array([right[c].mean() for c in cuts]), crops.astype(float))
    image = order // scores.shape[1]
    images = [
        len({int(i) for c, r in zip(cuts, rate, strict=True) if r == own for i in image[c]})
        for own in rate
    ]
    band = wilson_interval(rate * images, images)
    return np.array([s[c].mean() for c in cuts]), rate, band, crops


@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 4),
    st.integers(0, 999),
)
def test_counting_finds_what_sorting_finds(images, crops, bins, decimals, seed):
    """With few decimals most scores are equal, and bins divide equal scores."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random((images, crops)), decimals).astype(np.float32)
    correct = rng.random(scores.shape) < scores
    chunk = ranks.CHUNK
    try:
        ranks.CHUNK = 7  # several chunks, of a few images
        curve = reliability(scores, correct, bins)
    finally:
        ranks.CHUNK = chunk
    s, rate, (low, high), count = sorted_reliability(scores, correct, bins)
    assert curve.s == pytest.approx(s, abs=1e-12) and (curve.crops == count).all()
    assert curve.rate == pytest.approx(rate, abs=1e-12)
    assert curve.low == pytest.approx(low, abs=1e-12) and curve.high == pytest.approx(high)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_order_statistics_are_those_of_the_sorted_list(values):
    scores = np.array(values, np.float32)
    wanted = np.arange(len(scores))
    found, below = order_statistics(lambda: iter([scores[:3], scores[3:]]), wanted)
    expected = np.sort(scores)
    assert found.tolist() == expected.tolist()
    assert below.tolist() == [int((scores < v).sum()) for v in expected]


def test_images_without_ground_truth_say_nothing():
    rng = np.random.default_rng(3)
    scores, correct = rng.random((30, 4)).astype(np.float32), rng.random((30, 4)) < 0.5
    known = rng.random(30) < 0.6
    with_all = reliability(scores, correct, 9, known)
    alone = reliability(scores[known], correct[known], 9)
    for one, other in zip(vars(with_all).values(), vars(alone).values(), strict=True):
        assert one == pytest.approx(other)


def test_thresholds_of_many_crops_need_few_bytes_a_crop():
    """500 MB for 64 million crops are 7.8 bytes a crop; scores and outcomes alone take 5 of them.
    The whole pass over a store of that size is measured by ``python tests/mining.py``."""
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, 50), np.float32)
    correct = rng.random(scores.shape, np.float32) < scores
    known = np.ones(len(scores), bool)
    propose(scores[:10], correct[:10], known[:10], 5)  # imports and caches
    tracemalloc.start()
    try:
        evidence = propose(scores, correct, known, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert evidence.thresholds[1] == pytest.approx(0.5, abs=0.02)
    assert peak < 1.5 * scores.size + 20e6  # one byte a crop, and chunks of one size


def test_the_band_is_that_of_the_images_not_of_their_crops():
    """4 images of 50 crops at one score, half of them right: Wilson's interval of 2 in 4."""
    scores = np.full((4, 50), 0.5)
    correct = np.tile(np.arange(50) % 2 == 0, (4, 1))
    curve = reliability(scores, correct, bins=1)
    low, high = wilson_interval([2], [4])
    assert curve.rate.tolist() == [0.5] and curve.crops.tolist() == [200]
    assert (curve.low, curve.high) == (low, high)


def test_chance_is_left_where_the_lower_end_of_the_band_leaves_it():
    """20 classes; each score is of images of its own, right in 1, 2 and 10 of 10.

    Chance is 0.05. The rates 0.1 and 0.2 are above it, but the lower ends, 0.0179 and 0.0567, are
    on both sides: T_L lies between the scores 0.2 and 0.4, and T_M between 0.4 and 0.8.
    """
    scores = np.repeat([0.2, 0.4, 0.8], 10)[:, None]
    correct = np.concatenate([np.arange(10) < n for n in (1, 2, 10)])[:, None]
    low, _ = wilson_interval([1, 2], [10, 10])
    assert low[0] < 0.05 < low[1]
    curve = reliability(scores, correct, bins=3)
    assert curve.rate.tolist() == [0.1, 0.2, 1.0]
    found = propose(scores, correct, np.ones(30, bool), 20)
    assert found.thresholds[:2] == pytest.approx((0.3, 0.6))
