"""The trial of sampled tails: unbiased, as many bytes as said, gradients by hand."""

from __future__ import annotations

import pytest
import torch

from ferkd.study.bench.forms import Stored
from ferkd.study.bench.tails import TRIED, Sampled, gradient_errors

P = torch.tensor([0.7, 0.2, 0.06, 0.04], dtype=torch.float64)


def test_a_sampled_tail_is_right_in_expectation():
    crops = 20_000
    logits = P.log().float().repeat(crops, 1)
    unknown = torch.full((crops,), -1)
    form = Sampled(1, 2)
    given = form.recover(logits, unknown)
    assert torch.allclose(given.sum(1), torch.ones(crops, dtype=torch.float64))
    # The kept class and the mass of the others are as the record rounds them, a few per cent off.
    tail = 1 - given[0, 0]
    expected = torch.cat([given[0, :1], tail * P[1:] / P[1:].sum()])
    error = given.std(0) / crops**0.5
    assert ((given.mean(0) - expected).abs() <= 4 * error + 1e-9).all()
    # Two draws: nothing, half or all of the tail.
    assert {round(float(v), 6) for v in (given[:, 3] / tail).unique()} == {0.0, 0.5, 1.0}


def test_the_truth_has_its_own_probability_and_is_not_drawn():
    crops = 500
    logits = P.log().float().repeat(crops, 1)
    truth = torch.full((crops,), 3)
    given = Sampled(1, 2).recover(logits, truth)
    assert len(given[:, 3].unique()) == 1 and given[0, 3] == pytest.approx(0.04, rel=0.06)


def test_the_forms_tried_have_the_bytes_of_those_they_are_compared_with():
    bytes_ = [form.record_bytes(1000) for form in TRIED]
    # 8 for the box; classes 2 each, gaps 1, the tail 3, the truth 1.
    assert bytes_ == [
        26,
        8 + 6 + 2 + 4 + 6,
        8 + 2 + 4 + 12,
        41,
        8 + 10 + 4 + 4 + 14,
        8 + 4 + 1 + 4 + 22,
    ]
    assert bytes_[1] == bytes_[2] == bytes_[0] and max(bytes_[4:]) <= bytes_[3]


def test_the_error_of_a_gradient_by_hand():
    """Of two crops: an even tail is off by (-0.1, 0.04, 0.06), and mirrored."""
    logits = torch.stack([P.log(), P[[0, 3, 2, 1]].log()]).float()
    chunks = [(logits, torch.tensor([-1, -1]))]
    (row,) = gradient_errors(chunks, [Stored(1, "f32")], (1, 2, 3))
    assert row["error"][1] == pytest.approx(0.123288 / 0.534041, rel=1e-3)
    assert row["error"][2] == pytest.approx(0.0489898 / 0.521919, rel=1e-3)
    assert row["error"][3] is None
