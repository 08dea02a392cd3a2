"""The loss's benchmark: both sides are one loss, and memory is counted to the byte."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ferkd.objectives import soft_cross_entropy
from ferkd.study.bench.loss import DENSE, SPARSE, bench_loss, peak_bytes
from ferkd.study.bench.made_up import random_labels
from ferkd.system.errors import InputError

CPU = torch.device("cpu")


def labels_and_logits(batch=6, classes=40):
    rng = np.random.default_rng(1)
    shown = torch.from_numpy(rng.integers(0, classes, batch))
    labels = random_labels(shown, classes, rng, known=False)
    return labels, torch.from_numpy(rng.normal(0, 3, (batch, classes)))


def test_it_reports_time_and_memory():
    result = bench_loss(classes=(1000, 300), batch=32, repeats=1, rounds=1, device="cpu")
    json.dumps(result, allow_nan=False)
    row = result["details"]["rows"][0]
    array = 32 * 1000 * 4
    with_gradient = row["peak_bytes"]["with the gradient"]
    # One array, the gradient, and what belongs to 32 rows of 5 classes.
    assert array < with_gradient[SPARSE] < 1.2 * array
    assert 3 * array <= with_gradient[DENSE] < 3.2 * array  # targets, log-softmax, their product
    with_logits = row["peak_bytes"]["with the gradient and the logits"]
    assert with_logits[SPARSE] == with_gradient[SPARSE] + array
    assert row["peak_bytes"]["without either"][DENSE] == with_gradient[DENSE] - array
    assert row["peak_ratio"] == pytest.approx(with_gradient[DENSE] / with_gradient[SPARSE])
    assert list(result["targets"]) == [f"time of {DENSE} / time, 1000 classes"]
    assert result["value"] == row["milliseconds"][SPARSE]["median"]


def test_the_memory_target_is_for_many_classes():
    result = bench_loss(classes=(21_841,), batch=2, repeats=1, rounds=1, device="cpu")
    (found,) = result["targets"].values()
    assert found["target"] == 2 and found["reached"]


def test_peak_bytes_are_counted_exactly():
    def held():
        a = torch.zeros(1000)  # 4000 bytes
        b = torch.zeros(500)
        del a
        c = torch.zeros(250)
        return b, c

    assert peak_bytes(held, CPU) == 6000
    assert peak_bytes(lambda: None, CPU) == 0
    # Inside an operator too: logsumexp keeps exp(x - max) of all elements for a while.
    x = torch.zeros(100, 1000)
    assert peak_bytes(lambda: x.logsumexp(1), CPU) >= 400_000


def test_both_sides_are_one_loss():
    labels, logits = labels_and_logits()
    for temperature in (1.0, 2.0):
        a, b = (logits.float().requires_grad_() for _ in range(2))
        sparse = soft_cross_entropy(a, labels, temperature=temperature)
        dense = F.cross_entropy(b / temperature, labels.dense(temperature))
        sparse.backward()
        dense.backward()
        assert sparse.item() == pytest.approx(dense.item(), rel=1e-5)
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


def test_a_retained_graph_gives_the_same_gradient_again():
    labels, logits = labels_and_logits()
    z = logits.float().requires_grad_()
    loss = soft_cross_entropy(z, labels)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * loss, z)
    assert torch.equal(first, kept)  # what was handed out is not touched again
    assert torch.allclose(second, 3 * first, rtol=1e-6)


def test_half_precision_logits_get_half_precision_gradients():
    labels, logits = labels_and_logits()
    z = logits.bfloat16().requires_grad_()
    soft_cross_entropy(z, labels).backward()
    exact = z.detach().float().requires_grad_()
    soft_cross_entropy(exact, labels).backward()
    assert z.grad.dtype == torch.bfloat16
    assert torch.allclose(z.grad.float(), exact.grad, rtol=1e-2)


def test_extreme_logits_stay_exact():
    labels, _ = labels_and_logits(batch=1, classes=40)
    z = torch.full((1, 40), -1e4)
    z[0, 3] = 1e4
    p = labels.dense()[0].double()
    # log q is 0 at class 3 and -2e4 at all others.
    expected = 2e4 * float(p.sum() - p[3])
    assert soft_cross_entropy(z, labels).item() == pytest.approx(expected, rel=1e-5)


def test_wrong_counts_are_refused():
    for wrong in ({"batch": 0}, {"repeats": 0}, {"classes": (5,)}, {"classes": ()}):
        with pytest.raises(InputError, match="at least"):
            bench_loss(**wrong)
