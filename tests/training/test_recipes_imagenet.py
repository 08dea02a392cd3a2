"""The ImageNet recipes load, say what they cost, and train on ImageNet-shaped data."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.study.planning import Rates, Scale, plan
from ferkd.training import train
from ferkd.training.recipe import load_recipe, shipped_recipe

RECIPES = ("ferkd-resnet50", "fkd-resnet50", "ferkd-vit-small")
CLASSES = 1000


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 1000 classes with one image each, and its labels by a small random teacher."""
    root = tmp_path_factory.mktemp("imagenet")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", photo)[1].tobytes()
    for number in range(CLASSES):
        folder = root / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        (folder / f"n{number:08}_1.JPEG").write_bytes(data)
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)
    )
    teacher = Teacher(module, Inputs(image_size=8), spec="test")
    options = {"crops": 4, "workers": 1, "device": "cpu", "check_agreement": False}
    label(root / "train", teacher, root / "labels", **options)
    return root / "train", root / "labels"


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_the_papers(name):
    recipe = load_recipe(name)
    assert recipe.method == ("fkd" if name.startswith("fkd") else "ferkd-paper")
    if recipe.method == "ferkd-paper":
        assert recipe.regions.calibration == "steps" and recipe.regions.thresholds == "auto"
    assert (recipe.data.batch_size, recipe.data.crops_per_image) == (1024, 4)
    assert recipe.data.image_size == 224 and recipe.schedule.epochs == 300
    optimizer = recipe.optimizer
    if name == "ferkd-vit-small":
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 2e-3, 0.05)
        assert recipe.student.model_args == {"drop_path_rate": 0.1}
        assert recipe.schedule.warmup_epochs == 5
    else:
        assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
        assert optimizer.lr == pytest.approx(0.1 * 1024 / 512)
    assert recipe.mix.kind == ("none" if name.startswith("fkd") else "selfmix")


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_states_the_cost_that_its_plan_gives(name):
    """The rates of the header's own command give the header's hours and gigabytes."""
    text = shipped_recipe(name)
    assert "Not yet run at full scale" in text.splitlines()[0]
    assert "assumed and not measured" in text
    found = re.search(
        rf"ferkd plan {name} --teacher-rate (\d+) --student-rate (\d+) --decode-rate (\d+)\n", text
    )
    assert found is not None
    recipe = load_recipe(name)
    epochs = recipe.schedule.epochs
    assert epochs is not None
    scale = Scale(1_281_167, 50, CLASSES, epochs, recipe.data.crops_per_image)
    costs = plan(scale, Rates(*map(float, found.groups())))
    hours = costs.training
    assert (
        f"labels {costs.storage_bytes / 1e9:.1f} GB, labelling {costs.labelling.hours:.1f} h, "
        f"training {hours['ferkd'].hours:.1f} h; a live teacher would take "
        f"{hours['live'].hours:.1f} h."
    ) in text


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_on_imagenet_shaped_data(name, imagenet, tmp_path):
    images, store = imagenet
    recipe = load_recipe(
        name,
        [
            f"data.images={images}",
            "data.val=null",
            f"data.store={store}",
            "data.image_size=32",
            "data.batch_size=8",
            "data.workers=0",
            "schedule={steps: 2}",
            "optimizer.lr=0.0001",  # that of 1024 crops a step is too much for 8
            "device=cpu",
            "precision=fp32",
        ],
    )
    lines: list[dict] = []
    result = train(recipe, tmp_path / "run", progress=lines.append)
    assert result["steps"] == 2
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    # An untrained student's answers over 1000 classes are near even.
    assert losses and all(abs(loss - math.log(CLASSES)) < 1 for loss in losses)
    if name.startswith("ferkd"):
        assert "calibration steps" in lines[0]["regions"]
