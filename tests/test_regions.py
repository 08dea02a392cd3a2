"""FerKD's regions and calibration, against the table of the paper worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.errors import InputError
from ferkd.labels import SoftLabels
from ferkd.regions import (
    Region,
    Regions,
    calibrate,
    check_thresholds,
    classify,
    classify_scores,
    image_quantiles,
    keep_every_image,
    score_of,
)

D, H, K = Region.DISCARDED, Region.HARD, Region.IMPORTANT


def test_boundaries_are_as_in_the_papers_table():
    """s < L or s > T discarded; L <= s < M hard; M <= s <= T important."""
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.91])
    regions = classify_scores(scores, 0.2, 0.5, 0.9)
    assert regions.tolist() == [D, H, H, K, K, K, D]


def test_equal_thresholds_leave_one_score():
    scores = np.array([0.4, 0.5, 0.6])
    assert classify_scores(scores, 0.5, 0.5, 0.5).tolist() == [D, K, D]
    assert classify_scores(scores, 0.0, 0.0, 1.0).tolist() == [K, K, K]


@pytest.mark.parametrize(
    "bad",
    [
        (0.5, 0.4, 0.9),
        (0.1, 0.95, 0.9),
        (-0.1, 0.2, 0.9),
        (0.1, 0.2, 1.1),
        (math.nan, 0.2, 1),
    ],
)
def test_thresholds_out_of_order_are_refused(bad):
    with pytest.raises(InputError, match="out of order; they must satisfy 0 <= low <= middle"):
        check_thresholds(*bad)
    with pytest.raises(ValueError, match="out of order"):
        Regions(thresholds=bad)


def test_scores_by_largest_and_by_true_probability():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log()
    labels = SoftLabels.from_logits(logits, torch.tensor([1, -1]), k=1)
    targets = torch.tensor([1, -1])
    assert torch.allclose(score_of(labels, targets, "max_prob"), torch.tensor([0.7, 0.7]))
    true = score_of(labels, targets, "true_prob")
    assert true[0] == pytest.approx(0.2) and math.isnan(true[1])
    regions = classify(labels, targets, low=0.1, middle=0.5, top=0.9, score="true_prob")
    assert regions.tolist() == [
        H,
        K,
    ]  # without ground truth the crop keeps its soft label
    regions = classify(labels, targets, low=0.1, middle=0.5, top=0.9)
    assert regions.tolist() == [K, K]


def test_quantiles_within_an_image_by_hand():
    """Ranks of 4 scores: (0 + .5)/4 ...; two equal ones share the mean of their places."""
    q = image_quantiles(np.array([[0.3, 0.1, 0.9, 0.5], [0.2, 0.2, 0.8, 0.2]]))
    assert q[0].tolist() == [0.375, 0.125, 0.875, 0.625]
    assert q[1].tolist() == [0.375, 0.375, 0.875, 0.375]


def test_an_image_with_nothing_left_counts_as_hard():
    regions = np.array([[D, D], [D, K], [H, D]], np.int8)
    assert keep_every_image(regions).tolist() == [[H, H], [D, K], [H, D]]


def test_calibration_by_hand():
    """Hard row: .8 on the truth, .2 / 3 on each other class; the rest untouched."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4).log()
    labels = SoftLabels.from_logits(logits, k=2)
    regions = torch.tensor([H, K, H, D], dtype=torch.int8)
    out = calibrate(labels, torch.tensor([2, 2, -1, 2]), regions, epsilon=0.2).dense()
    assert torch.allclose(out[0], torch.tensor([0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3]))
    for untouched in (1, 2, 3):
        assert torch.allclose(out[untouched], torch.tensor([0.4, 0.3, 0.15, 0.15]))


def test_calibrated_labels_are_tempered_exactly():
    labels = SoftLabels.from_logits(torch.zeros(1, 5), k=3)
    out = calibrate(labels, torch.tensor([4]), torch.tensor([H]), 0.2).dense(2.0)[0]
    total = math.sqrt(0.8) + 4 * math.sqrt(0.05)
    assert out[4] == pytest.approx(math.sqrt(0.8) / total, abs=1e-6)
    assert out[0] == pytest.approx(math.sqrt(0.05) / total, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9), st.data())
def test_calibration_of_any_batch(rows, classes, k, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    labels = SoftLabels.from_logits(torch.from_numpy(rng.normal(0, 3, (rows, classes))), k=k)
    targets = torch.from_numpy(rng.integers(-1, classes, rows))
    regions = torch.from_numpy(rng.integers(0, 3, rows).astype(np.int8))
    before, after = labels.dense(), calibrate(labels, targets, regions, 0.1).dense()
    changed = (regions == H) & (targets >= 0)
    assert torch.allclose(after[~changed], before[~changed])
    assert torch.allclose(after.sum(1), torch.ones(rows), atol=1e-5)
    if changed.any():
        assert (after[changed].argmax(1) == targets[changed]).all()
