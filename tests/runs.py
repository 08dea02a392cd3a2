"""Small training runs for tests: their settings, the labels of each method, an interruption."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ferkd.labelling.run import label
from ferkd.methods import METHODS
from ferkd.training.recipe import Recipe, make_recipe

TEACHER = "timm/test_resnet?random=0&num_classes=3&mean=0.4&std=0.3"
STEPS = 5
Settings = dict[str, Any]


def data_on(photos: Path, **changes: Any) -> Settings:
    """The part data of a recipe: small batches of small crops, validation on the same images."""
    usual = {"image_size": 32, "batch_size": 4, "workers": 0}
    return {"images": str(photos), "val": str(photos), **usual, **changes}


def settings_on(photos: Path) -> Settings:
    """Dropout and EMA: the most that can go wrong when a run continues."""
    return {
        "teacher": TEACHER,
        "data": data_on(photos),
        "student": {
            "name": "timm/test_efficientnet",
            "pretrained": False,
            "model_args": {"drop_rate": 0.5},
        },
        "schedule": {"steps": STEPS},
        "evaluation": {"every_epochs": None},
        "ema": 0.9,
        "log_steps": 1,
    }


def labels_for(method: str, photos: Path, out: Path) -> str | None:
    """The labels that a method trains on, made as its card says; None where it needs none."""
    if METHODS[method].labels == "none":
        return None
    teacher, options = f"{TEACHER}&image_size=32", {"crops": 5, "top_k": 2}
    if method == "meal_v2":
        other = "timm/test_efficientnet?random=1&num_classes=3&image_size=32"
        teacher = f"{teacher},{other}"
    if method == "ssld":
        options["targets"] = False
    if METHODS[method].labels == "map":
        options = {"kind": "map", "top_k": 2}
    if METHODS[method].features:  # of another teacher than the labels, in one store
        other = "timm/test_efficientnet?random=1&num_classes=7&image_size=32"
        label(photos, other, out, workers=1, kind="features", crops=5)
        options = {"into": True, "top_k": 2}
    label(photos, teacher, out, workers=1, **options)
    return str(out)


def changed(
    settings: Settings, method: str, store: Callable[[str], str | None], **changes: Any
) -> Recipe:
    """The recipe of a method on its labels, with changes."""
    data = {**settings["data"], "store": store(method), **changes.pop("data", {})}
    return make_recipe({**settings, "method": method, "data": data, **changes})


def interrupt_at(step: int) -> Callable[[dict[str, Any]], None]:
    """Progress that presses Ctrl-C at a step."""

    def progress(line: dict[str, Any]) -> None:
        if line["kind"] == "train" and line["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress
