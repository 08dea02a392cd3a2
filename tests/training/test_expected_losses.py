"""The losses of a tiny deterministic run, kept as text: a change of the numbers must be meant.

After a change that is meant, read the difference, then write the file anew:
``python tests/test_expected_losses.py``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.training import train
from ferkd.training.recipe import Recipe

EXPECTED = Path(__file__).parents[1] / "expected_losses.json"
METHODS = ("hard", "fkd", "ferkd", "ferkd selfmix")


class Colours(torch.nn.Module):
    """A teacher without weights: a crop's class is its brightest channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * images.mean((2, 3))


def losses(work: Path) -> dict[str, list[float]]:
    """Training losses by method, one every two steps."""
    torch.set_num_threads(1)
    images = work / "images"
    rng = np.random.default_rng(0)
    for i in range(12):
        path = images / "rgb"[i % 3] / f"{i:02}.png"  # PNG: the same pixels on every machine
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 160, (24, 30, 3))
        pixels[4:20, 5:25, i % 3] += 90
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    teacher = Teacher(Colours(), Inputs(image_size=16, mean=(0.4,) * 3, std=(0.1,) * 3))
    label(images, teacher, work / "labels", crops=6, top_k=2)
    found = {}
    for method in METHODS:
        recipe: dict[str, object] = {
            "method": method.split()[0],
            "data": {
                "images": str(images),
                "store": str(work / "labels"),
                "image_size": 16,
                "batch_size": 8,
                "crops_per_image": 2,
                "workers": 0,
            },
            "student": {
                "name": "timm/resnet10t",
                "model_args": {"channels": [8, 8, 8, 8], "stem_width": 4},
            },
            "optimizer": {"name": "adamw", "lr": 0.01},
            "schedule": {"steps": 12},
            "regions": {"thresholds": [0.4, 0.6, 0.98], "epsilon": 0.1},
            "log_steps": 2,
        }
        if "selfmix" in method:
            recipe["mix"] = {"kind": "selfmix", "operator": "cutmix"}
        out = work / method
        train(Recipe.model_validate(recipe), out)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        found[method] = [round(line["loss"], 4) for line in lines if line["kind"] == "train"]
    return found


def test_the_losses_are_those_on_record(tmp_path):
    found, expected = losses(tmp_path), json.loads(EXPECTED.read_text())
    assert set(found) == set(expected)
    for method in METHODS:
        # Processors round differently, and a dozen steps let that grow.
        assert found[method] == pytest.approx(expected[method], abs=0.02), method


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        EXPECTED.write_text(json.dumps(losses(Path(folder)), indent=1) + "\n")
