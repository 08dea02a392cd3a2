"""Files that are whole or absent, and checkpoints that run no code."""

from __future__ import annotations

import json
import os
import stat

import pytest
import safetensors.torch
import torch
from torch import nn

from ferkd.errors import InputError
from ferkd.training.checkpoint import (
    atomic_write,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_weights,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="file modes are those of POSIX")
def test_the_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", lambda file: file.write(b""))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_keeps_names_readable(tmp_path):
    write_json(tmp_path / "a.json", {"class": "Blüte"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Blüte" in text and json.loads(text) == {"class": "Blüte"}


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
    with pytest.raises(InputError, match="checkpoint version 99, this ferkd reads 1"):
        load_checkpoint(tmp_path / "c.pt")


def test_random_streams_continue():
    state = random_state()
    first = torch.rand(4)
    restore_random_state(state)
    assert torch.equal(torch.rand(4), first)
