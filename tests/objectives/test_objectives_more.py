"""The objectives beside soft cross-entropy and the divergences, on the specification's vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from ferkd.objectives import build, soft_cross_entropy
from ferkd.objectives.decoupled import split_log, split_p
from ferkd.objectives.dist import uncorrelated
from ferkd.objectives.sides import forward_kl, sides
from ferkd.store import SoftLabels
from ferkd.system.errors import InputError

ROWS = {
    "A": ([2.0, 0.5, -1.0], [1.0, 3.0, 0.2], 1),
    "B": ([0.3, -0.4, 1.2], [0.1, 0.5, 2.0], 2),
    "C": ([0.0, 1.0, 0.4], [-0.5, 0.7, 1.1], 0),
    "D": ([1.2, 0.3, -0.5, 2.0, 0.0], [2.5, 1.0, -1.0, 0.5, -2.0], 0),
}
NAMES = ("soft_ce", "kl", "jeffreys", "dkd", "nkd", "dist", "bce", "pld", "lskd", "ofa")


def rows(names, k=None):
    """Student logits, teacher labels and targets of the specification's rows."""
    student, teacher, target = (list(part) for part in zip(*(ROWS[n] for n in names), strict=True))
    targets = torch.tensor(target)
    labels = SoftLabels.from_logits(torch.tensor(teacher), targets, k).with_truth(targets)
    return torch.tensor(student), labels, targets


CASES = [
    ("dkd", {"alpha": 1, "beta": 0, "ce_weight": 0}, "A", 1.041159),
    ("dkd", {"alpha": 0, "beta": 1, "ce_weight": 0}, "A", 0.359543),
    ("dkd", {"alpha": 1, "beta": 8, "ce_weight": 0}, "A", 3.917502),
    ("dkd", {"ce_weight": 0}, "A", 1.220930),
    ("dkd", {"temperature": 4, "alpha": 1, "beta": 0, "ce_weight": 0}, "A", 0.854261),
    ("dkd", {"temperature": 4, "alpha": 1, "beta": 8, "ce_weight": 0}, "A", 5.503662),
    ("dkd", {}, "A", 1.220930 + 1.741311),
    ("nkd", {"ce_weight": 0}, "A", 2.923765),
    ("nkd", {}, "A", 4.665076),
    ("nkd", {"temperature": 3, "gamma": 3.5, "ce_weight": 0}, "A", 24.985869),
    ("dist", {"gamma": 0, "ce_weight": 0}, "ABC", 0.652380),
    ("dist", {"beta": 0, "ce_weight": 0}, "ABC", 0.393706),
    ("dist", {"gamma": 0, "ce_weight": 0}, "AB", 0.664787),
    ("dist", {"beta": 0, "ce_weight": 0}, "AB", 0.000003),
    ("bce", {"mean_classes": True}, "A", 0.940270),
    ("bce", {}, "A", 2.820810),
    ("bce", {"mean_classes": True, "threshold": 0.2}, "A", 0.971422),
    ("bce", {"threshold": 0.2}, "A", 2.914267),
    ("pld", {}, "A", 1.461266),
    ("pld", {"temperature": 4}, "A", 0.841980),
    ("pld", {}, "B", 0.525560),
    ("pld", {}, "D", 1.375462),
    ("lskd", {"ce_weight": 0}, "A", 4.940762),
    ("lskd", {"temperature": 1, "kd_weight": 1, "ce_weight": 0}, "A", 0.550884),
    ("lskd", {"kd_weight": 0, "ce_weight": 1}, "A", 1.741311),
    ("ofa", {"eps": 1, "ce_weight": 0}, "A", 1.647855),
    ("ofa", {"eps": 1.5, "ce_weight": 0}, "A", 2.637063),
    ("ofa", {"eps": 1.5}, "A", 2.637063 + 1.741311),
]


@pytest.mark.parametrize(("name", "options", "names", "expected"), CASES)
def test_the_specifications_vectors(name, options, names, expected):
    # The vector with T = 3 is given to six digits of its parts, before they are multiplied by 31.5.
    found = float(build(name, **options)(*rows(names)))
    assert found == pytest.approx(expected, abs=3e-6, rel=2e-6)


def test_pld_of_the_three_stored_classes():
    """Spec: D with the top 3 gives 1.354449, the two classes left out drop a mass of .029509."""
    student, labels, targets = rows("D", k=3)
    assert labels.dense()[0, [2, 4]].sum() == pytest.approx(0.029509, abs=1e-6)
    assert float(build("pld")(student, labels, targets)) == pytest.approx(1.354449, abs=2e-6)


def test_the_gradient_of_pld_on_the_specifications_vector():
    student, labels, targets = rows("A")
    student.requires_grad_()
    build("pld")(student, labels, targets).backward()
    expected = torch.tensor([[0.651408, -0.689473, 0.038065]])
    assert torch.allclose(student.grad, expected, atol=2e-6)
    other = float(build("pld")(student.detach(), labels, torch.tensor([0])))
    assert other == pytest.approx(0.195688, abs=2e-6)


def test_pld_of_a_certain_teacher_is_cross_entropy():
    student, targets = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    certain = SoftLabels.hard(targets, 6)
    expected = cross_entropy(student, targets)
    assert float(build("pld")(student, certain, targets)) == pytest.approx(float(expected))


def pld_by_hand(student, p, target, ranked):
    """The definition, term by term, for one row."""
    order = sorted((c for c in ranked if c != target), key=lambda c: -p[c])
    order = [target, *order]
    left = [c for c in range(len(p)) if c not in order]
    total = 0.0
    for place, c in enumerate(order):
        suffix = [*order[place:], *left]
        total += p[c] * (math.log(sum(math.exp(student[i]) for i in suffix)) - student[c])
    return total


@given(st.integers(2, 8), st.integers(1, 8), st.integers(0, 99))
def test_pld_is_its_definition_for_any_top_k(classes, k, seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(3, classes) * 2, torch.randn(3, classes) * 3
    targets = torch.randint(0, classes, (3,))
    labels = SoftLabels.from_logits(teacher, targets, k).with_truth(targets)
    p = labels.dense().tolist()
    expected = 0.0
    for row in range(3):
        best = teacher[row].topk(min(k, classes)).indices.tolist()
        ranked = {*best, int(targets[row])}
        expected += pld_by_hand(student[row].tolist(), p[row], int(targets[row]), ranked) / 3
    found = float(build("pld")(student, labels, targets))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.integers(1, 6), st.sampled_from([1.0, 2.0, 4.0]), st.booleans(), st.integers(0, 99))
def test_the_two_parts_of_dkd_make_up_the_divergence(k, temperature, mix, seed):
    """KL = TCKD + (1 - p_y) NCKD, row by row."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(3, 6) * 2, torch.randn(3, 6) * 2
    targets = torch.tensor([0, 3, 5])
    labels = SoftLabels.from_logits(teacher, targets, k).with_truth(targets)
    if mix:
        labels = labels.mixed(SoftLabels.hard(targets, 6, 0.1), torch.tensor([0.2, 0.7, 1.0]))
    p, log_q = sides(student, labels, temperature)
    p_y, mass, p_hat = split_p(p, targets)
    log_y, log_mass, log_hat = split_log(log_q, targets)
    assert torch.allclose(log_y.exp() + log_mass.exp(), torch.ones(3), atol=1e-5)
    tckd = torch.xlogy(p_y, p_y) - p_y * log_y + torch.xlogy(mass, mass) - mass * log_mass
    nckd = (torch.xlogy(p_hat, p_hat) - p_hat * log_hat).sum(1)
    whole = float((tckd + mass * nckd).mean())
    assert whole == pytest.approx(float(forward_kl(p, log_q)), abs=1e-5)
    for alpha, beta, expected in ((1, 0, tckd.mean()), (0, 1, nckd.mean())):
        dkd = build("dkd", temperature=temperature, alpha=alpha, beta=beta, ce_weight=0)
        found = float(dkd(student, labels, targets))
        assert found == pytest.approx(temperature**2 * float(expected), abs=1e-4)


def test_correlations_ignore_shift_and_scale_and_bear_constant_rows():
    a, b = torch.rand(4, 6), torch.rand(4, 6)
    assert float(uncorrelated(a, b)) == pytest.approx(
        float(uncorrelated(3 * a + 1, 2 * b)), abs=1e-5
    )
    reference = torch.stack(
        [torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b, strict=True)]
    )
    assert float(uncorrelated(a, b)) == pytest.approx(float(1 - reference.mean()), abs=1e-5)
    constant = torch.full((2, 6), 0.5, requires_grad=True)
    loss = uncorrelated(constant, b[:2])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0) and torch.isfinite(constant.grad).all()


def test_standardised_logits_ignore_the_scale_of_either_side():
    student, teacher, targets = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0, 1, 2])
    lskd = build("lskd", ce_weight=0)
    first = lskd(student, SoftLabels.from_logits(teacher), targets)
    second = lskd(3 * student + 2, SoftLabels.from_logits(2 * teacher), targets)
    assert float(first) == pytest.approx(float(second), rel=1e-4)


def test_standardising_top_k_labels_is_refused_with_the_remedy():
    student, labels, targets = rows("D", k=3)
    with pytest.raises(InputError, match=r"all 5 classes, these labels hold 3; label with --top-k"):
        build("lskd")(student, labels, targets)


def test_ofa_of_eps_one_is_soft_cross_entropy_for_top_k_labels_too():
    student, labels, targets = rows("D", k=2)
    ofa = build("ofa", eps=1, ce_weight=0)
    expected = float(soft_cross_entropy(student, labels))
    assert float(ofa(student, labels, targets)) == pytest.approx(expected, abs=1e-5)


@given(st.sampled_from(NAMES), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_every_objective_has_a_gradient_that_makes_it_smaller(name, k, mix, seed):
    torch.manual_seed(seed)
    targets = torch.tensor([0, 3, 5, 3])
    k = 6 if name == "lskd" else k
    labels = SoftLabels.from_logits(torch.randn(4, 6) * 3, targets, k).with_truth(targets)
    if mix:
        labels = labels.mixed(labels[[1, 0, 3, 2]], torch.tensor([0.9, 0.6, 0.5, 1.0]))
    objective = build(name)
    logits = torch.randn(4, 6, requires_grad=True)
    loss = objective(logits, labels, targets)
    loss.backward()
    assert loss.shape == () and torch.isfinite(logits.grad).all()
    assert torch.allclose(logits.grad.sum(1), torch.zeros(4), atol=1e-4) or name == "bce"
    step = 1e-3 / max(1e-6, float(logits.grad.norm()))
    assert float(objective(logits.detach() - step * logits.grad, labels, targets)) <= float(
        loss.detach()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_refuses_shapes_that_do_not_fit(name):
    labels = SoftLabels.from_logits(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"logits of shape \[2, 4\] do not fit 2 labels over 5"):
        build(name)(torch.randn(2, 4), labels, torch.zeros(2).long())


@pytest.mark.parametrize("name", ["kl", "dkd", "nkd", "dist", "pld", "lskd", "ofa"])
def test_objectives_that_use_the_truth_ask_for_it(name):
    student, labels, _ = rows("A")
    with pytest.raises(ValueError, match="needs targets"):
        build(name)(student, labels, None)


@pytest.mark.parametrize("name", ["dkd", "nkd", "pld", "ofa", "dist"])
def test_softening_a_label_without_a_record_of_its_tail_is_refused(name):
    student, labels, targets = rows("D", k=3)
    bare = replace(labels, tail=torch.tensor([[float(labels.tail[0, 0]), math.nan, math.nan]]))
    with pytest.raises(InputError, match="use temperature 1"):
        build(name, temperature=2)(student, bare, targets)
    assert math.isfinite(float(build(name)(student, bare, targets)))
