"""Weights and checkpoints read back, and run no code."""

from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch
from torch import nn

from ferkd.system.errors import InputError
from ferkd.training.checkpoint import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_weights,
)


def test_weights_read_back_even_when_channels_last_or_shared(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[1].weight
    model = model.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", model)
    state = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_checkpoint_reads_back(tmp_path):
    state = {"step": 3, "losses": [0.5], "model": {"w": torch.arange(3)}, "ema": None}
    save_checkpoint(tmp_path / "c.pt", state)
    found = load_checkpoint(tmp_path / "c.pt")
    assert found["step"] == 3 and found["losses"] == [0.5] and found["ema"] is None
    assert torch.equal(found["model"]["w"], torch.arange(3))


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_pickled_code_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "model": Payload()}, "c.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(tmp_path, share):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": {"w": torch.randn(1000)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"c\.pt: not a readable checkpoint"):
        load_checkpoint(path)


def test_another_version_is_refused(tmp_path):
    torch.save({"version": 99}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="checkpoint version 99, this ferkd reads 2"):
        load_checkpoint(tmp_path / "c.pt")


def test_random_streams_continue():
    state = random_state()
    first = torch.rand(4)
    restore_random_state(state)
    assert torch.equal(torch.rand(4), first)
