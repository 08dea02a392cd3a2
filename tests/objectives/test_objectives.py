"""Objectives against the specification's vectors and the dense formula in double precision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.objectives import build, soft_cross_entropy
from ferkd.objectives.sides import forward_kl, reverse_kl, sides
from ferkd.store import SoftLabels
from ferkd.system.errors import InputError

A_STUDENT, A_TEACHER = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([[1.0, 3.0, 0.2]])
D_STUDENT = torch.tensor([[1.2, 0.3, -0.5, 2.0, 0.0]])
D_TEACHER = torch.tensor([[2.5, 1.0, -1.0, 0.5, -2.0]])


def dense_formula(logits, p, temperature=1.0):
    return -(p.double() * (logits.double() / temperature).log_softmax(1)).sum(1).mean()


def test_the_specifications_vectors():
    def loss(student, teacher, k=None):
        return float(soft_cross_entropy(student, SoftLabels.from_logits(teacher, k=k)))

    assert loss(A_STUDENT, A_TEACHER) == pytest.approx(1.647855, abs=1e-6)
    assert loss(D_STUDENT, D_TEACHER) == pytest.approx(1.527194, abs=1e-6)
    assert loss(D_STUDENT, D_TEACHER, k=3) == pytest.approx(1.523785, abs=1e-6)


@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 8),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.sampled_from(["uniform", "renorm"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_loss_and_gradient_equal_the_dense_formula(rows, classes, k, temperature, tail, mix, seed):
    torch.manual_seed(seed)
    labels = SoftLabels.from_logits(torch.randn(rows, classes) * 4, k=k)
    if mix:
        labels = labels.mixed(
            SoftLabels.hard(torch.zeros(rows).long(), classes, 0.1), torch.rand(rows)
        )
    logits = (torch.randn(rows, classes) * 5 + 100).requires_grad_()
    reference = logits.detach().double().requires_grad_()
    p = labels.dense(temperature, tail)
    expected = dense_formula(reference, p, temperature)
    expected.backward()
    ours = soft_cross_entropy(logits, labels, temperature=temperature, tail=tail)
    (2 * ours).backward()  # a scaled loss must scale the gradient
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), abs=2e-4)
    assert torch.allclose(logits.grad, 2 * reference.grad.float(), atol=1e-5)


def test_gradient_by_finite_differences():
    labels = SoftLabels.from_logits(torch.randn(3, 7), k=2)
    logits = torch.randn(3, 7)
    logits.requires_grad_()
    soft_cross_entropy(logits, labels).backward()
    step = torch.zeros(3, 7)
    step[1, 4] = 1e-2
    with torch.no_grad():
        difference = soft_cross_entropy(logits + step, labels) - soft_cross_entropy(
            logits - step, labels
        )
    assert float(difference / 2e-2) == pytest.approx(float(logits.grad[1, 4]), abs=1e-4)


def test_half_precision_logits_get_a_gradient_of_their_own_type():
    logits = torch.randn(2, 5, dtype=torch.bfloat16, requires_grad=True)
    soft_cross_entropy(logits, SoftLabels.from_logits(torch.randn(2, 5), k=2)).backward()
    assert logits.grad.dtype == torch.bfloat16


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    labels = SoftLabels.hard(torch.tensor([1]), 3)
    assert float(soft_cross_entropy(logits, labels)) == pytest.approx(2e4)


def test_shapes_that_do_not_fit_are_refused():
    labels = SoftLabels.from_logits(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"logits of shape \[2, 4\] do not fit 2 labels over 5"):
        soft_cross_entropy(torch.randn(2, 4), labels)


def test_objectives_by_name():
    labels = SoftLabels.from_logits(A_TEACHER)
    assert float(build("soft_ce")(A_STUDENT, labels, None)) == pytest.approx(1.647855, abs=1e-6)
    with pytest.raises(InputError, match=r"unknown objective 'soft_c'.*did you mean 'soft_ce'"):
        build("soft_c")


BATCH = {
    "A": ([2.0, 0.5, -1.0], [1.0, 3.0, 0.2], 1),
    "B": ([0.3, -0.4, 1.2], [0.1, 0.5, 2.0], 2),
    "C": ([0.0, 1.0, 0.4], [-0.5, 0.7, 1.1], 0),
    "D": ([1.2, 0.3, -0.5, 2.0, 0.0], [2.5, 1.0, -1.0, 0.5, -2.0], 0),
}


def loss_of(rows, objective, k=None, truth=True, **options):
    """An objective on the specification's rows of logits, mean over them."""
    student, teacher, target = (
        list(part) for part in zip(*(BATCH[row] for row in rows), strict=True)
    )
    targets = torch.tensor(target)
    labels = SoftLabels.from_logits(torch.tensor(teacher), targets, k).with_truth(targets)
    asked = targets if truth else None
    return float(build(objective, **options)(torch.tensor(student), labels, asked))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1, "ce_weight": 0, "kd_weight": 1}, 1.100117),
        ({"temperature": 2, "ce_weight": 0, "kd_weight": 1}, 1.203692),
        ({"temperature": 4, "ce_weight": 0, "kd_weight": 1}, 1.159097),
        ({"temperature": 1, "ce_weight": 1, "kd_weight": 0}, 1.741311),
        ({"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.9}, 1.217318),
        ({}, 1.420714),
    ],
)
def test_kl_on_the_specifications_vectors(options, expected):
    assert loss_of("A", "kl", **options) == pytest.approx(expected, abs=2e-6)


def test_the_gradient_of_kl_on_the_specifications_vector():
    logits = A_STUDENT.clone().requires_grad_()
    kl = build("kl", ce_weight=0, kd_weight=1)
    kl(logits, SoftLabels.from_logits(A_TEACHER), None).backward()
    expected = torch.tensor([[0.672454, -0.660728, -0.011726]])
    assert torch.allclose(logits.grad, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("tail", "temperature", "expected"),
    [("bucket", 1, 0.639595), ("support", 1, 0.605961), ("support", 4, 0.719582)],
)
def test_kl_of_top_k_labels_on_the_specifications_vectors(tail, temperature, expected):
    p, log_q = sides(D_STUDENT, SoftLabels.from_logits(D_TEACHER, k=3), temperature, tail)
    assert float(temperature**2 * forward_kl(p, log_q)) == pytest.approx(expected, abs=2e-6)


def test_reverse_kl_on_the_specifications_vectors():
    for temperature, expected in ((1, 1.238229), (2, 1.274888), (4, 1.195413)):
        p, log_q = sides(A_STUDENT, SoftLabels.from_logits(A_TEACHER), temperature)
        assert float(temperature**2 * reverse_kl(p, log_q)) == pytest.approx(expected, abs=2e-6)
    for k, expected in ((3, 0.783970), (None, 0.816049)):
        p, log_q = sides(D_STUDENT, SoftLabels.from_logits(D_TEACHER, k=k), 1, "bucket")
        assert float(reverse_kl(p, log_q)) == pytest.approx(expected, abs=2e-6)


def test_jeffreys_on_the_specifications_vectors():
    assert loss_of("A", "jeffreys") == pytest.approx(1.169173, abs=2e-6)
    expected = (0.639595 + 0.783970) / 2
    assert loss_of("D", "jeffreys", k=3) == pytest.approx(expected, abs=2e-6)


def test_a_teacher_that_is_certain_gives_a_finite_backward_divergence():
    """KL(q || p) = sum q (log q + 80) over the other classes, at the floor of e^-80."""
    logits = torch.zeros(1, 3, requires_grad=True)
    labels = SoftLabels.hard(torch.tensor([0]), 3)
    loss = build("jeffreys", tail="uniform")(logits, labels, None)
    loss.backward()
    q = math.log(1 / 3)
    assert float(loss.detach()) == pytest.approx((-q + q + 80 * 2 / 3) / 2, rel=1e-5)
    assert torch.isfinite(logits.grad).all()


@given(
    st.sampled_from(["kl", "jeffreys"]),
    st.sampled_from(["uniform", "renorm", "bucket", "support"]),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 99),
)
def test_divergences_are_zero_at_the_teacher_alone_and_their_gradients_finite(
    name, tail, temperature, k, mix, seed
):
    torch.manual_seed(seed)
    labels = SoftLabels.from_logits(torch.randn(3, 6) * 3, k=k)
    if mix:
        other = SoftLabels.hard(torch.tensor([0, 1, 2]), 6, 0.1)
        labels = labels.mixed(other, torch.tensor([0.3, 0.6, 1.0]))
    options = {"temperature": temperature, "tail": tail}
    if name == "kl":
        options |= {"ce_weight": 0.0, "kd_weight": 1.0}
    objective = build(name, **options)
    p = labels.dense(temperature, "renorm" if tail in ("renorm", "support") else "uniform")
    if tail in ("uniform", "bucket"):  # there the teacher's own logits are at hand
        same = temperature * p.log()
        assert abs(float(objective(same, labels, None))) < 1e-4
    logits = torch.randn(3, 6, requires_grad=True)
    loss = objective(logits, labels, None)
    loss.backward()
    assert float(loss.detach()) > -1e-5 and torch.isfinite(logits.grad).all()


@given(st.integers(1, 4), st.integers(0, 99))
def test_lumping_the_tail_together_is_a_lower_bound_that_all_classes_reach(k, seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(3, 5) * 2, torch.randn(3, 5) * 2
    targets = teacher.argmax(1)
    whole = SoftLabels.from_logits(teacher)
    exact = float(build("jeffreys")(student, whole, targets))
    bucket = float(build("jeffreys")(student, SoftLabels.from_logits(teacher, k=k), targets))
    assert bucket <= exact + 1e-5
    assert float(build("jeffreys", tail="uniform")(student, whole, None)) == pytest.approx(exact)


def test_a_softened_top_k_label_has_the_recorded_tail_not_an_invented_one():
    """The specification's warning: C = 1000, k = 5, 2 % left over.

    Spread evenly the invented tail takes .752722 of the mass at T = 2 and .965523 at T = 4; here
    the teacher's tail is in ten classes, and the label at T knows how little that is.
    """
    top = [0.90, 0.05, 0.015, 0.010, 0.005]
    p = torch.full((1, 1000), 1e-12)
    p[0, :5], p[0, 5:15] = torch.tensor(top), 0.002
    for temperature, invented in ((2.0, 0.752722), (4.0, 0.965523)):
        exact = (p.log().double() / temperature).softmax(1)[0, 5:].sum()
        labels = SoftLabels.from_logits(p.log(), k=5)
        kept = labels.dense(temperature)[0, 5:].sum()
        assert float(kept) == pytest.approx(float(exact), abs=1e-4)
        spread = torch.full((1, 1000), 0.02 / 995)
        spread[0, :5] = torch.tensor(top)
        tail = (spread.log() / temperature).softmax(1)[0, 5:].sum()
        assert float(tail) == pytest.approx(invented, abs=1e-5) and tail > kept + 0.3


def test_a_temperature_that_a_label_cannot_support_is_refused_with_the_remedy():
    labels = SoftLabels.from_logits(D_TEACHER, k=3)
    unknown = replace(labels, tail=torch.tensor([[float(labels.tail[0, 0]), math.nan, math.nan]]))
    for tail in ("uniform", "bucket"):
        kl = build("kl", temperature=2.0, ce_weight=0, tail=tail)
        with pytest.raises(InputError, match=r"use temperature 1, tail \"renorm\", or label again"):
            kl(D_STUDENT, unknown, None)
        with pytest.raises(InputError, match=r"temperature 0\.5 is below 1.*store all classes"):
            build("kl", temperature=0.5, ce_weight=0, tail=tail)(D_STUDENT, labels, None)
    assert math.isfinite(float(build("kl", ce_weight=0)(D_STUDENT, unknown, None)))
    supported = build("kl", temperature=2.0, ce_weight=0, tail="support")
    assert math.isfinite(float(supported(D_STUDENT, unknown, None)))


def test_rows_without_ground_truth_have_no_hard_term():
    logits = torch.randn(4, 3)
    labels = SoftLabels.from_logits(torch.randn(4, 3))
    kl = build("kl", ce_weight=1, kd_weight=0)
    known = torch.tensor([2, -1, 0, -1])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], known[[0, 2]]) / 2
    assert float(kl(logits, labels, known)) == pytest.approx(float(expected))
    assert float(kl(logits, labels, torch.full((4,), -1))) == 0
    with pytest.raises(ValueError, match="needs targets"):
        kl(logits, labels, None)
