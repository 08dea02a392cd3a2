"""The loop alone, on a loader of tensors: what a step does, and that a run continues to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ferkd.loading.mixing import Mix
from ferkd.objectives import soft_cross_entropy
from ferkd.store import SoftLabels
from ferkd.system.compute import Normalise
from ferkd.training.checkpoint import load_checkpoint, save_checkpoint
from ferkd.training.mixing import mixer
from ferkd.training.optim import OptimizerConfig, build_optimizer
from ferkd.training.trainer import NonFiniteLoss, Trainer

CPU = torch.device("cpu")
STEPS = 9


class FakeLoader:
    """Random batches by step; starting draws from the global generator, as a DataLoader does."""

    def __init__(self, soft=False, batch=6):
        self.soft, self.batch = soft, batch
        self.closed = 0

    def batches(self, start, stop):
        torch.rand(3)
        try:
            for step in range(start, stop):
                generator = torch.Generator().manual_seed(step)
                images = torch.randint(
                    0, 256, (self.batch, 3, 8, 8), dtype=torch.uint8, generator=generator
                )
                targets = torch.randint(0, 3, (self.batch,), generator=generator)
                logits = torch.randn(self.batch, 3, generator=generator)
                labels = SoftLabels.from_logits(logits) if self.soft else None
                rows = torch.arange(self.batch) + self.batch * step
                yield batch(images, targets, labels, rows, torch.arange(self.batch) % 2)
        finally:
            self.closed += 1


def batch(images, targets, labels=None, rows=None, crops=None):
    rows = torch.arange(len(images)) if rows is None else rows
    crops = torch.zeros_like(rows) if crops is None else crops
    return SimpleNamespace(images=images, labels=labels, targets=targets, rows=rows, crops=crops)


def objective(logits, view):
    if view.labels is None:
        return nn.functional.cross_entropy(logits, view.targets)
    return soft_cross_entropy(logits, view.labels)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(8 * 36, 3),
    )  # fmt: skip


def trainer(model=None, loader=None, *, optimizer=None, rate=0.05, steps=STEPS, **options):
    model = model or network()
    return Trainer(
        model,
        loader or FakeLoader(),
        objective,
        optimizer=build_optimizer(optimizer or OptimizerConfig(lr=rate), model),
        learning_rate=lambda step: rate / (1 + step),
        steps=steps,
        normalise=Normalise((0.5,) * 3, (0.25,) * 3, CPU),
        **options,
    )


def weights(t):
    kept = {f"model.{k}": v for k, v in t.model.state_dict().items()}
    if t.ema is not None:
        kept |= {f"ema.{k}": v for k, v in t.ema.module.state_dict().items()}
    return kept


def identical(a, b):
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def one_black_image(**options):
    """One linear layer, zero weights, one black image of class 0 of 2, plain SGD of rate 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)

    class OneImage:
        def batches(self, start, stop):
            images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
            yield batch(images, torch.tensor([0]))

    sgd = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
    return trainer(model, OneImage(), optimizer=sgd, rate=1.0, steps=1, **options)


def test_frozen_statistics_stay_and_gains_learn_also_after_an_evaluation():
    for frozen in (True, False):
        t = trainer(frozen_statistics=frozen)
        norm = t.model[1]
        before = [norm.running_mean.clone(), norm.weight.detach().clone()]
        for step in t.run():
            if step == 3:  # as an evaluation does that sets back the mode which it found
                t.model.eval()
                t.model.train()
        assert torch.equal(before[0], norm.running_mean) is frozen
        assert not torch.equal(before[1], norm.weight)
        assert int(norm.num_batches_tracked) == (0 if frozen else STEPS)


def test_a_step_by_hand():
    """The update is the negative of the gradient.

    The input is (0 - .5) / .25 = -2 in each of 3 values; p = (1/2, 1/2), so dL/dlogits =
    (-1/2, 1/2) and dL/dW = (1, -1).
    """
    t = one_black_image()
    assert list(t.run()) == [1]
    assert torch.allclose(t.model[1].weight, torch.tensor([[-1.0] * 3, [1.0] * 3]))
    assert torch.allclose(t.model[1].bias, torch.tensor([0.5, -0.5]))
    assert t.mean_loss() == pytest.approx(np.log(2))
    assert (t.step, t.crops) == (1, 1)


def test_gradients_are_clipped_to_the_norm():
    """The gradient above has norm sqrt(6 + 1/2); clipped to 1/2 it keeps its direction."""
    t = one_black_image(clip_grad=0.5)
    list(t.run())
    moved = torch.cat([t.model[1].weight.flatten(), t.model[1].bias]).detach()
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(moved[0] / moved[6]) == pytest.approx(-2.0, rel=1e-4)


def test_the_rate_of_each_step_is_the_schedules():
    t = trainer(rate=0.06, steps=3)
    used = [t.optimizer.param_groups[0]["lr"] for _ in t.run()]
    assert used == [0.06, 0.03, 0.02]


def test_the_loss_is_the_mean_since_it_was_last_asked():
    t = trainer(steps=4)
    losses, means = [], []

    def recorded(*args):
        loss = objective(*args)
        losses.append(loss.item())
        return loss

    t.objective = recorded
    for step in t.run():
        if step % 2 == 0:
            means.append(t.mean_loss())
    assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert np.isnan(t.mean_loss())


SETTINGS = [
    {},
    {"ema": 0.9},
    {"ema": 0.9, "clip_grad": 0.1, "loader": FakeLoader(soft=True)},
    {"optimizer": OptimizerConfig(name="sgd"), "channels_last": False},
    {"dtype": torch.bfloat16, "ema": 0.5},
    {
        "mixer": mixer(
            Mix(kind="selfmix"), crops_per_image=2, seed=3, num_classes=3, label_smoothing=0.1
        )
    },
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stop", [1, 4, STEPS - 1])
def test_a_killed_run_continues_to_the_bit(tmp_path, settings, stop):
    """Dropout is in the model, so the random stream has to continue too."""
    whole = trainer(**settings)
    expected = [whole.mean_loss() for _ in whole.run()]

    killed = trainer(**settings)
    run = killed.run()
    seen = []
    for step in run:
        seen.append(killed.mean_loss())
        if step == stop:
            save_checkpoint(tmp_path / "c.pt", killed.state())
        if step == min(stop + 2, STEPS):  # the work after the checkpoint is lost
            break
    run.close()

    torch.manual_seed(99)
    resumed = trainer(**settings)
    resumed.load_state(load_checkpoint(tmp_path / "c.pt"))
    later = [resumed.mean_loss() for _ in resumed.run()]
    assert seen[:stop] + later == expected
    assert identical(whole, resumed)


def test_unreported_losses_survive_in_the_checkpoint():
    whole = trainer(steps=4)
    list(whole.run())
    first = trainer(steps=4)
    for step in first.run():
        if step == 2:
            state = first.state()
            break
    second = trainer(steps=4)
    second.load_state(state)
    list(second.run())
    assert second.mean_loss() == whole.mean_loss()


def test_a_finished_run_takes_no_more_steps():
    t = trainer(steps=2)
    list(t.run())
    again = trainer(steps=2)
    again.load_state(t.state())
    assert list(again.run()) == []


def test_the_loader_is_closed_when_the_caller_stops():
    loader = FakeLoader()
    run = trainer(loader=loader).run()
    next(run)
    run.close()
    assert loader.closed == 1


def test_bfloat16_differs_from_float32_but_little():
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        t = trainer(steps=1, dtype=dtype)  # seeds the dropout too
        list(t.run())
        losses.append(t.mean_loss())
        assert next(t.model.parameters()).dtype == torch.float32
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_average_is_what_is_kept():
    plain = trainer()
    list(plain.run())
    averaged = trainer(ema=0.99)
    list(averaged.run())
    assert plain.best_model is plain.model
    assert averaged.best_model is averaged.ema.module
    assert not torch.equal(averaged.best_model[0].weight, averaged.model[0].weight)
    assert torch.equal(plain.model[0].weight, averaged.model[0].weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("ask", ["mean_loss", "state"])
def test_a_diverged_run_stops_and_names_the_step(bad, ask):
    t = trainer(steps=5)
    losses = iter([1.0, 1.0, bad, 1.0, 1.0])
    t.objective = lambda logits, view: logits.sum() * 0 + next(losses)
    list(t.run())
    with pytest.raises(NonFiniteLoss) as caught:
        getattr(t, ask)()
    message = str(caught.value)
    assert f"the loss became {bad} at step 3 of 5 (learning rate 0.0167)" in message
    assert "optimizer.lr" in message and "clip_grad" in message


def test_mixed_hard_targets_at_share_one_are_the_smoothed_cross_entropy():
    """With nothing mixed in, the soft path equals torch's label smoothing."""
    apply = mixer(
        Mix(kind="mixup", probability=0.0),
        crops_per_image=1,
        seed=0,
        num_classes=5,
        label_smoothing=0.3,
    )
    images, targets, logits = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 4, 2]), torch.randn(4, 5)
    mixed, labels, larger = apply(0, images, None, targets)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.3)
    assert torch.equal(mixed, images) and torch.equal(larger, targets)
    assert float(soft_cross_entropy(logits, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_mixing_depends_on_the_step_and_the_seed_alone():
    def mixed(seed, step):
        apply = mixer(
            Mix(kind="mixup"), crops_per_image=1, seed=seed, num_classes=3, label_smoothing=0.0
        )
        images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2).clone()
        return apply(step, images, None, torch.tensor([0, 1, 2, 0]))[0]

    assert torch.equal(mixed(1, 5), mixed(1, 5))
    assert not torch.equal(mixed(1, 5), mixed(1, 6))
    assert not torch.equal(mixed(1, 5), mixed(2, 5))


def test_mixed_images_labels_and_targets_belong_together():
    """Each row is one value, so the share of the own image can be read off the pixels."""
    apply = mixer(Mix(kind="mixup"), crops_per_image=1, seed=4, num_classes=4, label_smoothing=0.0)
    targets = torch.tensor([0, 1, 2, 3])
    images = (10.0 ** torch.arange(4.0)).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mixed, labels, larger = apply(0, images, None, targets)
    p = labels.dense()
    assert torch.allclose(mixed[:, 0, 0, 0], p @ images[:, 0, 0, 0], rtol=1e-4)
    assert torch.equal(larger, p.argmax(1)) and not torch.equal(larger, targets)


def test_an_objective_sees_the_mixed_view_and_whose_it_is():
    seen = []

    def watched(logits, view):
        seen.append(view)
        return objective(logits, view)

    t = trainer(
        steps=2,
        mixer=mixer(
            Mix(kind="mixup"), crops_per_image=1, seed=3, num_classes=3, label_smoothing=0.1
        ),
    )
    t.objective = watched
    list(t.run())
    first, second = seen
    assert first.rows.tolist() == list(range(6)) and second.rows.tolist() == list(range(6, 12))
    assert first.crops.tolist() == [0, 1] * 3
    plain = t.normalise(next(FakeLoader().batches(0, 1)).images)
    assert first.images.shape == plain.shape and not torch.equal(first.images, plain)
    assert first.labels.partner is not None


class Counting:
    """An objective that remembers how often it was asked, and weighs the loss by it."""

    def __init__(self):
        self.asked = torch.zeros(())

    def __call__(self, logits, view):
        self.asked += 1
        return objective(logits, view) / self.asked

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked.copy_(state["asked"])


def test_the_state_of_an_objective_continues_with_the_run(tmp_path):
    whole = trainer()
    whole.objective = Counting()
    expected = [whole.mean_loss() for _ in whole.run()]
    killed = trainer()
    killed.objective = Counting()
    for step in killed.run():
        if step == 4:
            save_checkpoint(tmp_path / "c.pt", killed.state())
            break
    resumed = trainer()
    resumed.objective = Counting()
    resumed.load_state(load_checkpoint(tmp_path / "c.pt"))
    last = [resumed.mean_loss() for _ in resumed.run()]
    assert last[1:] == expected[5:] and resumed.objective.asked == STEPS
    assert identical(whole, resumed)


def test_no_mixing_is_no_mixer():
    assert mixer(Mix(), crops_per_image=1, seed=0, num_classes=3, label_smoothing=0.0) is None
