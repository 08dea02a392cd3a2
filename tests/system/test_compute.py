"""Devices, precisions and the normalisation of uint8 batches."""

from __future__ import annotations

import pytest
import torch

from ferkd.system.compute import Normalise, autocast, resolve_device, resolve_precision
from ferkd.system.errors import InputError

CPU = torch.device("cpu")


def test_normalisation_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    out = Normalise((0.5, 0.2, 0.0), (0.5, 0.1, 2.0), CPU)(images)
    # (0 - .5) / .5, (.2 - .2) / .1, (1 - 0) / 2
    assert torch.allclose(out.flatten(), torch.tensor([-1.0, 0.0, 0.5]), atol=1e-6)


def test_normalisation_keeps_the_memory_format_and_its_input():
    planes = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    interleaved = planes.contiguous(memory_format=torch.channels_last)
    before = interleaved.clone()
    normalise = Normalise((0.5, 0.1, 0.2), (0.5, 0.3, 0.4), CPU)
    assert torch.equal(normalise(interleaved), normalise(planes))
    assert normalise(interleaved).is_contiguous(memory_format=torch.channels_last)
    assert normalise(planes).is_contiguous()
    assert torch.equal(interleaved, before)


def test_unknown_and_absent_devices_are_refused():
    with pytest.raises(InputError, match="device 'gpu' is not known; use auto, cpu"):
        resolve_device("gpu")
    with pytest.raises(InputError, match="is not available on this machine"):
        resolve_device("cuda:63")
    assert resolve_device("cpu") == CPU


def test_precisions_on_the_cpu():
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    with pytest.raises(InputError, match="fp16 needs a CUDA device, and the device is cpu"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("cpu", "name", "warned"),
    [("AVX2", "bf16", True), ("AVX512", "bf16", False), ("AVX2", "auto", False)],
)
def test_emulated_bf16_is_warned_of(monkeypatch, caplog, cpu, name, warned):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    resolve_precision(name, CPU)
    assert ("ten times slower than with fp32; use fp32 or auto" in caplog.text) == warned


def test_autocast_sets_the_precision_of_the_forward_pass():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32
