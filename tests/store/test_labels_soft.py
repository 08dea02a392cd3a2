"""Soft labels against distributions worked out by hand or in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.objectives import build
from ferkd.store.records import RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError

D = torch.tensor([[2.5, 1.0, -1.0, 0.5, -2.0]])  # test vector D of the objectives' specification
D_PROBS = [0.714402, 0.159405, 0.021573, 0.096684, 0.007936]


def close(a, b, tolerance=1e-6):
    assert torch.allclose(torch.as_tensor(a), torch.tensor(b), atol=tolerance), (a, b)


def test_full_labels_are_the_softmax():
    labels = SoftLabels.from_logits(D)
    close(labels.dense()[0], D_PROBS)
    for temperature in (0.5, 2.0, 3.0, 20.0):
        assert torch.allclose(labels.dense(temperature), (D / temperature).softmax(1), atol=1e-6)


def test_marginal_smoothing_and_renorm_by_hand():
    labels = SoftLabels.from_logits(D, k=3)
    assert labels.classes.tolist() == [[0, 1, 3]]
    close(labels.dense()[0], [0.714402, 0.159405, 0.014755, 0.096684, 0.014755])
    close(labels.dense(tail="renorm")[0], [0.736125, 0.164252, 0.0, 0.099624, 0.0])


def test_tempered_top_k_keeps_the_true_tail_mass():
    """Top-3 of D at T = 2 and 4: stored classes as in the full softmax, tail mass exact."""
    labels = SoftLabels.from_logits(D, k=3)
    for temperature in (2.0, 4.0):
        exact = (D / temperature).softmax(1)[0]
        ours = labels.dense(temperature)[0]
        close(ours[[0, 1, 3]], exact[[0, 1, 3]].tolist())
        close(ours[2] + ours[4], float(exact[2] + exact[4]))


def test_the_invented_tail_of_published_systems_is_not_ours():
    """C = 1000, k = 5, p = .9 .05 .015 .01 .005: a uniform tail of .02 at T = 4 takes 96.6 %."""
    p = torch.full((1000,), 0.02 / 995)
    p[:5] = torch.tensor([0.9, 0.05, 0.015, 0.01, 0.005])
    ours = SoftLabels.from_logits(p.log()[None], k=5).dense(4.0)[0]
    close(ours[0], 0.014116, 1e-5)  # here the tail truly is uniform, so the figure is right
    peaked = p.clone()
    peaked[5:] = 1e-9
    peaked[5] = 1 - peaked.sum() + peaked[5]  # the same tail mass on one class: at T = 4 little
    exact = peaked.pow(0.25) / peaked.pow(0.25).sum()
    stored = [0, 1, 5, 2, 3]
    ours = SoftLabels.from_logits(peaked.log()[None], k=5).dense(4.0)[0, stored]
    assert torch.allclose(ours, exact[stored], atol=1e-5)


def test_interpolated_temperature_between_the_recorded_ones():
    torch.manual_seed(0)
    logits = torch.randn(50, 1000) * 2.5
    labels = SoftLabels.from_logits(logits, k=5)
    for temperature in (1.5, 3.0, 8.0):
        exact = (logits / temperature).softmax(1)
        stored = labels.dense(temperature).gather(1, labels.classes)
        assert (stored - exact.gather(1, labels.classes)).abs().max() < 2e-3


def test_what_a_record_does_not_hold_is_refused():
    labels = SoftLabels.from_logits(D, k=3)
    with pytest.raises(InputError, match=r"temperature 0.5 is below 1"):
        labels.dense(0.5)
    unknown = labels.tail.clone()
    unknown[:, 1:] = math.nan
    imported = SoftLabels(labels.classes, labels.log_probs, unknown, 5)
    close(imported.dense()[0].sum(), 1.0)
    with pytest.raises(InputError, match=r"temperature 4.0 asks for the tail"):
        imported.dense(4.0)
    close(imported.dense(4.0, tail="renorm")[0].sum(), 1.0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_softened_hard_label_by_hand(epsilon):
    labels = SoftLabels.hard(torch.tensor([2]), 5, epsilon)
    other = epsilon / 4
    close(labels.dense()[0], [other, other, 1 - epsilon, other, other])
    assert SoftLabels.hard(torch.tensor([0]), 1, epsilon).dense().tolist() == [[1.0]]


def test_softened_hard_label_is_tempered_exactly():
    """C = 5, eps = .2, T = 2: sqrt(.8) on the class, sqrt(.05) elsewhere, normalised."""
    ours = SoftLabels.hard(torch.tensor([0]), 5, 0.2).dense(2.0)[0]
    total = math.sqrt(0.8) + 4 * math.sqrt(0.05)
    close(ours, [math.sqrt(0.8) / total] + [math.sqrt(0.05) / total] * 4)


def test_mixing_is_linear_at_any_temperature():
    a, b = SoftLabels.from_logits(D, k=3), SoftLabels.from_logits(-D, k=2)
    share = torch.tensor([0.3])
    for temperature in (1.0, 4.0):
        expected = 0.3 * a.dense(temperature) + 0.7 * b.dense(temperature)
        assert torch.allclose(a.mixed(b, share).dense(temperature), expected, atol=1e-7)
    with pytest.raises(ValueError, match="once only"):
        a.mixed(b, share).mixed(b, share)


def test_probability_of_the_truth_outside_the_stored_classes():
    labels = SoftLabels.from_logits(D, targets=torch.tensor([4]), k=2)
    close(labels.prob_of(torch.tensor([4]))[0], D_PROBS[4])
    close(labels.prob_of(torch.tensor([1]))[0], D_PROBS[1])
    assert torch.isnan(labels.prob_of(torch.tensor([-1])))[0]
    assert labels.top1().tolist() == [0]
    close(labels.max_prob()[0], D_PROBS[0])


def test_the_truth_gets_its_own_place_in_the_tail_by_hand():
    """Top-3 of D with truth 4: its .007936 leaves .021573 for class 2; no tail mass is lost."""
    labels = SoftLabels.from_logits(D, targets=torch.tensor([4]), k=3)
    placed = labels.with_truth(torch.tensor([4]))
    close(placed.dense()[0], D_PROBS)
    for temperature in (2.0, 4.0):
        assert torch.allclose(placed.dense(temperature), (D / temperature).softmax(1), atol=1e-6)
    # Marginal re-norm keeps the teacher's top classes alone, wherever the truth is.
    close(placed.dense(tail="renorm")[0], [0.736125, 0.164252, 0.0, 0.099624, 0.0])
    inside = SoftLabels.from_logits(D, targets=torch.tensor([1]), k=3)
    assert torch.equal(inside.with_truth(torch.tensor([1])).dense(), inside.dense())
    unknown = labels.with_truth(torch.tensor([-1]))
    assert torch.equal(unknown.dense(), labels.dense())
    last = SoftLabels.from_logits(D, targets=torch.tensor([4]), k=4)
    close(last.with_truth(torch.tensor([4])).dense()[0], D_PROBS)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1.0, 2.0, 4.0]))
def test_placing_the_truth_never_loses_mass_nor_order(classes, k, seed, temperature):
    torch.manual_seed(seed)
    targets = torch.randint(-1, classes, (4,))
    fmt = RecordFormat.choose(k, classes, "u8")
    labels = SoftLabels.from_logits(torch.randn(4, classes) * 4, targets, fmt.k)
    records = fmt.encode(labels)
    back = fmt.decode(records, (targets >= 0).numpy())
    placed = back.with_truth(targets)
    dense = placed.dense(temperature)
    assert torch.allclose(dense.sum(1), torch.ones(4), atol=1e-4) and (dense > -1e-6).all()
    assert torch.equal(placed.top1(), back.top1())
    kept = back.dense(temperature).gather(1, back.classes)
    # At T = 1 nothing stored moves; at others the truth's coarse gap shifts the tail a little.
    tolerance = 1e-5 if temperature == 1 else 0.02
    assert torch.allclose(dense.gather(1, back.classes), kept, atol=tolerance)
    known = targets >= 0
    exact = placed.dense()[known].gather(1, targets[known][:, None])[:, 0]
    assert torch.allclose(placed.prob_of(targets)[known], exact, atol=1e-6)


def test_equal_logits_keep_the_lowest_class_numbers():
    assert SoftLabels.from_logits(torch.zeros(1, 6), k=3).classes.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        SoftLabels.from_logits(torch.tensor([[0.0, bad]]))


logit_rows = st.integers(1, 12).flatmap(
    lambda c: st.lists(
        st.lists(st.floats(-60, 60, width=32), min_size=c, max_size=c),
        min_size=1,
        max_size=4,
    )
)


@given(logit_rows, st.integers(1, 14), st.sampled_from([1.0, 1.7, 2.0, 4.0]))
def test_every_label_is_a_distribution(rows, k, temperature):
    logits = torch.tensor(rows)
    labels = SoftLabels.from_logits(logits, k=k)
    for tail in ("uniform", "renorm"):
        dense = labels.dense(temperature, tail)
        assert torch.allclose(dense.sum(1), torch.ones(len(rows)), atol=1e-4)
        assert (dense > -1e-6).all()
    smaller = SoftLabels.from_logits(logits, k=max(1, k - 2))
    reduced = labels.top(max(1, k - 2))
    assert torch.allclose(reduced.dense(), smaller.dense(), atol=1e-6)


@given(logit_rows, st.integers(1, 14), st.sampled_from(["u8", "f16", "f32"]), st.data())
def test_records_give_back_what_they_were_made_of(rows, k, values, data):
    logits = torch.tensor(rows)
    n, num_classes = logits.shape
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    targets = torch.from_numpy(rng.integers(-1, num_classes, n))
    fmt = RecordFormat.choose(k, num_classes, values)
    labels = SoftLabels.from_logits(logits, targets, fmt.k)
    records = fmt.encode(labels)
    back = fmt.decode(records, (targets >= 0).numpy())
    assert not any(wrong.any() for wrong, _ in fmt.impossible(records))
    tolerance = {"u8": 0.06, "f16": 2e-3, "f32": 1e-5}[values]
    assert (back.dense() - labels.dense()).abs().max() < tolerance
    assert torch.allclose(back.dense().sum(1), torch.ones(n), atol=1e-4)
    ours, exact = back.prob_of(targets), labels.prob_of(targets)
    assert torch.equal(torch.isnan(ours), torch.isnan(exact))
    assert (ours - exact).nan_to_num().abs().max() < tolerance


def test_sizes_of_records():
    """Top-5 in 18 bytes: classes 10, gaps 4, tail 3, truth 1."""
    assert RecordFormat.choose(5, 1000).dtype.itemsize == 18
    assert RecordFormat.choose(5, 5).dtype.itemsize == 2 * 5
    assert RecordFormat.choose(None, 1000, "f32").dtype.itemsize == 4000


def test_a_u8_gap_by_hand():
    """Gap ln 2 = .6931: code round(48 * .8326) = 40, back as (40 / 48)^2 = .6944."""
    labels = SoftLabels.from_logits(torch.tensor([[math.log(2.0), 0.0, -50.0]]), k=2)
    fmt = RecordFormat.choose(2, 3)
    records = fmt.encode(labels)
    assert records["gaps"].tolist() == [[40]]
    gap = fmt.decode(records).log_probs[0]
    assert gap[0] - gap[1] == pytest.approx((40 / 48) ** 2, abs=1e-6)


def test_class_numbers_up_to_65535_and_no_further():
    logits = torch.zeros(1, 65536)
    logits[0, 65535] = 9
    fmt = RecordFormat.choose(1, 65536)
    records = fmt.encode(SoftLabels.from_logits(logits, k=1))
    assert fmt.decode(records).top1().tolist() == [65535]
    with pytest.raises(InputError, match=r"65537 classes.*at most 65536"):
        RecordFormat.choose(5, 65537)


def test_a_truth_far_below_the_tails_mean_stays_a_probability_when_mixed():
    """18 nats below: p is 1e-8 of the mean, which a float32 sum with the mean cannot hold. The mean
    of e^z, z of deviation 2, is e^2, and the truth has z = -16."""
    torch.manual_seed(0)
    rows, truth = 512, torch.full((512,), 7)
    logits = torch.randn(2, rows, 1000) * 2
    logits[:, :, 7] = -16
    a, b = (SoftLabels.from_logits(z, truth, 5).with_truth(truth) for z in logits)
    mixed = a.mixed(b, torch.rand(rows))
    for temperature in (1.0, 2.0):
        p = mixed.dense(temperature)
        assert (p > 0).all() and torch.allclose(p.sum(1), torch.ones(rows), atol=1e-5)
        own, other = (labels.dense(temperature)[:, 7] for labels in (a, b))
        expected = mixed.share * own + (1 - mixed.share) * other
        assert torch.allclose(p[:, 7], expected, rtol=1e-4, atol=0)
    exact = logits[0].double().log_softmax(1)[:, 7].exp().float()
    assert torch.allclose(a.dense()[:, 7], exact, rtol=1e-3, atol=0)
    student = torch.zeros(rows, 1000, requires_grad=True)
    for name in ("jeffreys", "kl", "dkd"):
        loss = build(name)(student, mixed, truth)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all(), name


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1.0, 2.0, 4.0]))
def test_the_sparse_and_the_dense_form_are_one_distribution(classes, k, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, classes, generator=generator) * 3
    truth = torch.randint(0, classes, (4,), generator=generator)
    a, b = (SoftLabels.from_logits(z, truth, k).with_truth(truth) for z in logits)
    for labels in (a, a.mixed(b, torch.rand(4, generator=generator))):
        for tail in ("uniform", "renorm"):
            sparse = labels.targets(temperature, tail).dense()
            assert torch.allclose(labels.dense(temperature, tail), sparse, atol=1e-6)
