"""The README's training loop runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from nets import brightness
from pictures import write_noise

import ferkd

README = Path(__file__).parents[2] / "README.md"


def test_the_loop_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python[^\n]*\n(.*?)```", README.read_text(), flags=re.DOTALL)
    sizes = {f"{'ab'[i % 2]}/{i}.jpg": (48 + i, 60 - i) for i in range(18)}
    write_noise(tmp_path / "photos/train", sizes)
    monkeypatch.chdir(tmp_path)
    ferkd.label("photos/train", brightness(32), "labels", crops=8)
    found: dict[str, object] = {}
    exec(block, found)
    loader, loss = found["loader"], found["loss"]
    assert isinstance(loader, ferkd.SoftLabelLoader) and loader.epoch == 2
    assert isinstance(loss, torch.Tensor) and loss.isfinite() and loss.shape == ()
