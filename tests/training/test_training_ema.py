"""The average of the weights, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferkd.training.ema import Ema, ema_decay


def test_the_decay_warms_up():
    assert [ema_decay(0.5, step) for step in (0, 2, 8, 1000)] == [0.1, 0.25, 0.5, 0.5]


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.2)
    nn.init.constant_(model.weight, 2.0)
    ema.update(0)  # decay .1: .1 * 1 + .9 * 2
    assert ema.module.weight.item() == pytest.approx(1.9)
    nn.init.constant_(model.weight, 3.0)
    ema.update(5)  # decay min(.2, 6 / 15) = .2: .2 * 1.9 + .8 * 3
    assert ema.module.weight.item() == pytest.approx(2.78)
    assert model.weight.item() == 3.0


def test_buffers_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9)
    model(torch.tensor([[4.0, 0.0], [6.0, 0.0]]))  # running mean 0 -> 0.1 * 5
    ema.update(0)
    assert ema.module.running_mean.tolist() == pytest.approx([0.45, 0.0])
    assert int(ema.module.num_batches_tracked) == 1


def test_the_average_is_a_copy_in_eval_mode_without_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    ema = Ema(model, 0.9)
    assert not ema.module.training and model.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert ema.module[0].weight.data_ptr() != model[0].weight.data_ptr()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="must lie in"):
        Ema(nn.Linear(1, 1), decay)
