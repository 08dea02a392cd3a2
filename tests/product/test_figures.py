"""Figures of a delivered model: the images as its labels had them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ferkd.evaluating.run import evaluate
from ferkd.models.student import ModelConfig, Student, build_student
from ferkd.product.figures import figures_of
from ferkd.system.files import write_json
from ferkd.training.checkpoint import save_weights


@pytest.mark.parametrize("exif", [True, False])
def test_turned_images_are_seen_as_in_training(tmp_path: Path, exif: bool) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
            coarse.resize((90, 60)).save(tmp_path / "val" / name / f"{i}.jpg", exif=turned)
    torch.manual_seed(0)
    run, name = tmp_path / "run", "timm/test_resnet"
    run.mkdir()
    model = build_student(Student(name=name), 2)
    torch.nn.init.normal_(model.get_classifier().weight)
    save_weights(run / "weights.safetensors", model)
    config = ModelConfig(
        architecture=name, num_classes=2, class_names=("a", "b"), image_size=32, exif=exif
    )
    write_json(run / "config.json", config.model_dump(mode="json"))
    found = figures_of(run, str(tmp_path / "val"), 0, "cpu")
    wanted = evaluate(run, tmp_path / "val", device="cpu")
    assert found.nll == pytest.approx(wanted["nll"], abs=1e-6)
    write_json(run / "config.json", config.model_copy(update={"exif": not exif}).model_dump())
    other = figures_of(run, str(tmp_path / "val"), 0, "cpu")
    assert abs(other.nll - found.nll) > 1e-3  # turned, it is another image
