"""Objectives against the specification's vectors and the dense formula in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.errors import InputError
from ferkd.labels import SoftLabels
from ferkd.objectives import build, soft_cross_entropy

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
