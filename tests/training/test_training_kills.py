"""Training killed at random moments and resumed gives the same weights, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from ferkd.labelling.run import label
from ferkd.models.teacher import load_teacher


def test_killed_training_gives_the_same_weights(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 36, 3), dtype=np.uint8))
    teacher = load_teacher("timm/resnet10t?random=0&num_classes=2&image_size=32")
    label(tmp_path / "images", teacher, tmp_path / "whole-labels", crops=6, top_k=1)
    script = Path(__file__).parents[1] / "kills.py"
    run = subprocess.run(
        [sys.executable, script, tmp_path, "6", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[0]) >= 1
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    weights = "weights.safetensors"
    assert (whole / weights).read_bytes() == (killed / weights).read_bytes()

    def lines(folder: Path) -> list[dict]:
        found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found]

    assert lines(whole) == lines(killed)
