"""Methods with a state of their own: PS-KD's predictions, MEAL V2's discriminator."""

from __future__ import annotations

import pytest
import torch
from runs import STEPS, changed
from torch.nn import functional
from views import A_STUDENT, A_TEACHER, view

from ferkd.methods.meal_v2 import Adversary
from ferkd.methods.pskd import OwnPredictions
from ferkd.methods.stored import StoredLabels
from ferkd.objectives import build as objective
from ferkd.store import SoftLabels
from ferkd.training.run import build_trainer

# MEAL V2's discriminator


def test_the_discriminator_learns_and_the_student_learns_to_fool_it():
    """A fixed student is told from the teacher; then the student's logits alone are moved."""
    torch.manual_seed(0)
    labels = SoftLabels.from_logits(torch.randn(64, 5) * 4)
    stored = StoredLabels(objective("soft_ce"))
    adversary = Adversary(stored, 5, weight=1.0, lr=0.01)
    logits = torch.randn(64, 5) * 0.1
    shown = view(labels=labels, targets=[0] * 64)
    plain = float(stored(logits, shown))
    passing = [float(adversary(logits.clone().requires_grad_(), shown).detach()) - plain]
    for _ in range(100):
        passing.append(float(adversary(logits, shown).detach()) - plain)
    assert passing[-1] > 2 * passing[0]  # it is found out
    moved = logits.clone().requires_grad_()
    for _ in range(60):
        loss = adversary(moved, shown) - stored(moved, shown)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = (moved - 20 * gradient).detach().requires_grad_()
    assert float((adversary(moved, shown) - stored(moved, shown)).detach()) < passing[-1] / 2


def test_the_students_term_leaves_the_discriminator_alone():
    adversary = Adversary(StoredLabels(objective("soft_ce")), 3, weight=1.0)
    logits = A_STUDENT.clone().requires_grad_()
    loss = adversary(logits, view(labels=SoftLabels.from_logits(A_TEACHER)))
    parameters = list(adversary.network.parameters())
    own = [p.grad.clone() for p in parameters]
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, own, strict=True))
    soft = A_STUDENT.clone().requires_grad_()
    adversary.objective(soft, view(labels=SoftLabels.from_logits(A_TEACHER))).backward()
    assert not torch.allclose(logits.grad, soft.grad)


def test_the_weight_of_the_discriminator_is_read(settings, store):
    recipe = changed(settings, "meal_v2", store, loss={"discriminator": 0.25})
    found = build_trainer(recipe)[0].objective
    assert isinstance(found, Adversary) and found.weight == 0.25
    plain = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"discriminator": 0})})
    assert isinstance(build_trainer(plain)[0].objective, StoredLabels)


# PS-KD


def test_the_specifications_vector_of_pskd():
    """Spec 3.5: P_prev = the teacher's softmax of vector A, y = 1, e + 1 = 150 of 300."""
    own = OwnPredictions(1, 3, epochs=300, batch_size=1)
    own.last.copy_(A_TEACHER.softmax(1))
    own.seen.fill_(True)
    own.step = 149
    assert own.share(own.step) == pytest.approx(0.4)
    expected = torch.tensor([[0.045257, 0.934408, 0.020335]])
    assert torch.allclose(own.targets(view(targets=(1,))), expected, atol=1e-6)
    assert float(own(A_STUDENT, view(targets=(1,)))) == pytest.approx(1.703929, abs=1e-6)


def test_pskd_begins_with_the_truth_and_keeps_the_mean_of_an_images_crops():
    own = OwnPredictions(4, 3, epochs=4, batch_size=2, own_share=0.8)
    logits = torch.randn(4, 3)
    shown = view(targets=(2, 2, 0, 0), rows=(3, 3, 1, 1))
    plain = functional.cross_entropy(logits, shown.targets)
    assert float(own(logits, shown)) == pytest.approx(float(plain), rel=1e-6)
    p = logits.softmax(1)
    assert torch.allclose(own.last[3], p[:2].mean(0)) and torch.allclose(own.last[1], p[2:].mean(0))
    assert own.seen.tolist() == [False, True, False, True]
    # Step 1 is still of epoch 0: its share is 0.8 / 4.
    again = view(targets=(2, 1), rows=(3, 0))
    expected = torch.stack([0.2 * p[:2].mean(0), torch.zeros(3)])
    expected += torch.tensor([[0.0, 0.0, 0.8], [0.0, 1.0, 0.0]])
    assert torch.allclose(own.targets(again), expected, atol=1e-6)


def test_the_share_of_pskd_rises_by_epochs_to_the_last():
    own = OwnPredictions(2, 3, epochs=3, batch_size=1, own_share=0.6)
    shares = [own.share(step) for step in range(6)]
    assert shares == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6])


def test_the_epochs_of_pskd_are_whole_at_every_boundary():
    """As floats, 49 * (1 / 49) is below 1, so the epoch would begin a step late."""
    own = OwnPredictions(49, 3, epochs=5, batch_size=1)
    assert own.share(48) == pytest.approx(0.16) and own.share(49) == pytest.approx(0.32)
    assert own.share(5 * 49 - 1) == pytest.approx(0.8)


def test_pskd_counts_epochs_in_the_crops_of_its_run(settings, store):
    """10 images, 4 crops a step, 5 steps: 2 epochs, of which step 3 (crop 12) begins the second."""
    own = build_trainer(changed(settings, "pskd", store))[0].objective
    assert own.epochs == 2.0
    assert [own.share(step) for step in range(STEPS)] == pytest.approx([0.4, 0.4, 0.4, 0.8, 0.8])
    half = {"crops_per_image": 2, "batch_size": 3}  # whole images: 4 crops a step
    own = build_trainer(changed(settings, "pskd", store, data=half))[0].objective
    assert own.epochs == 2.0 and own.share(3) == pytest.approx(0.8)


def test_the_last_share_of_pskd_is_read(settings, store):
    own = build_trainer(changed(settings, "pskd", store, loss={"own_share": 0.3}))[0].objective
    assert own.share(STEPS - 1) == pytest.approx(0.3)
