"""Figures of merit against small examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.evaluating import measures


def logits_of(*probs):
    return torch.tensor(probs, dtype=torch.float64).log()


def test_top_k_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 2.0, 1.0]])
    targets = torch.tensor([0, 1, 3])  # ranks 0, 2, 2
    assert measures.ranks(logits, targets).tolist() == [0, 2, 2]
    assert measures.top_k(logits, targets) == pytest.approx(1 / 3)
    assert measures.top_k(logits, targets, 2) == pytest.approx(1 / 3)
    assert measures.top_k(logits, targets, 3) == 1.0


def test_equal_logits_are_ordered_by_class_number():
    logits = torch.zeros(3, 3)
    assert measures.ranks(logits, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]


def test_top_5_of_fewer_classes_counts_all_of_them():
    assert measures.measure(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))["top5"] == 1.0


def test_nll_and_brier_by_hand():
    logits = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    targets = torch.tensor([0, 2])
    assert measures.nll(logits, targets) == pytest.approx((math.log(2) + math.log(10)) / 2)
    # .25 + .0625 + .0625 = .375, and .01 + .64 + .81 = 1.46
    assert measures.brier(logits, targets) == pytest.approx((0.375 + 1.46) / 2)


def test_ece_of_two_bins_by_hand():
    """Bin (0, 1/2]: confidence .45, one wrong. Bin (1/2, 1]: .6 .8 .7, right, wrong, right."""
    logits = logits_of([0.45, 0.3, 0.25], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7])
    targets = torch.tensor([1, 0, 0, 2])
    # 1/4 |0 - .45| + 3/4 |2/3 - .7| = .1125 + .025
    assert measures.ece(logits, targets, bins=2) == pytest.approx(0.1375)
    # One bin: |1/2 - 2.55/4|
    assert measures.ece(logits, targets, bins=1) == pytest.approx(0.1375)


def test_ece_bins_are_closed_above():
    """Confidence exactly 1/2 belongs to the first of two bins, so it cannot cancel with .9."""
    logits = torch.tensor([[0.0, 0.0], [math.log(9), 0.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])  # gaps: +.5 alone, -.9 alone; together they would leave .2
    assert measures.ece(logits, targets, bins=2) == pytest.approx((0.5 + 0.9) / 2, abs=1e-6)


def test_certain_and_right_is_perfectly_calibrated():
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert measures.ece(logits, torch.tensor([0, 1])) == pytest.approx(0.0, abs=1e-12)
    assert measures.ece(logits, torch.tensor([1, 0])) == pytest.approx(1.0)


def test_per_class_and_balanced_accuracy_by_hand():
    logits = torch.eye(3)[[0, 0, 0, 1, 0]]
    targets = torch.tensor([0, 0, 0, 1, 1])  # class 0: 3 of 3, class 1: 1 of 2, class 2: none
    found = measures.per_class_accuracy(logits, targets)
    assert found[:2].tolist() == [1.0, 0.5]
    assert np.isnan(found[2])
    measured = measures.measure(logits, targets)
    assert measured["balanced_accuracy"] == pytest.approx(0.75)
    assert measured["top1"] == pytest.approx(0.8)


def test_images_without_ground_truth_are_left_out():
    logits = torch.eye(2)[[0, 1, 1]]
    targets = torch.tensor([0, -1, 1])
    assert measures.measure(logits, targets) == measures.measure(logits[[0, 2]], targets[[0, 2]])


def test_agreement_by_hand():
    student = logits_of([0.5, 0.5 - 1e-9], [0.25, 0.75])
    teacher = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    found = measures.teacher_agreement(student, teacher)
    # Answers: student 0 and 1, teacher 0 and 0 (a tie goes to the lower class).
    assert found["agreement"] == 0.5
    # KL: log 2, and .5 log(.5/.25) + .5 log(.5/.75)
    second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert found["kl"] == pytest.approx((math.log(2) + second) / 2, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 40))
def test_ranges_and_orders_hold_for_any_logits(seed, classes, count):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 5
    targets = torch.randint(classes, (count,), generator=generator)
    found = measures.measure(logits, targets)
    assert 0 <= found["top1"] <= found["top5"] <= 1
    assert found["top1"] == float((logits.argmax(1) == targets).double().mean())
    assert 0 <= found["ece"] <= 1 and 0 <= found["brier"] <= 2 and found["nll"] >= 0
    own = measures.teacher_agreement(logits, logits.double().softmax(1))
    assert own["agreement"] == 1.0 and own["kl"] == pytest.approx(0.0, abs=1e-9)


def test_ece_has_15_bins():
    """.605 and .66 share a bin of 15, as they would of 10, and .66 and .67 do not."""
    right, wrong = torch.tensor([0]), torch.tensor([1])

    def found(sure, doubtful):
        logits = torch.tensor([[sure, 1 - sure], [doubtful, 1 - doubtful]]).double().log()
        return measures.ece(logits, torch.cat([right, wrong]))

    assert found(0.605, 0.66) == pytest.approx((0.66 - 0.395) / 2, abs=1e-6)
    assert found(0.66, 0.67) == pytest.approx((0.34 + 0.67) / 2, abs=1e-6)
