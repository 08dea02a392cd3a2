"""How large a demo is, and what follows from it: the teacher's recipe and the students' suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from ferkd.calibration.regions import Regions
from ferkd.loading.mixing import Mix
from ferkd.study.compare import Suite, make_suite
from ferkd.study.demo.data import Data
from ferkd.system.settings import Part
from ferkd.training.recipe import Recipe

BUDGET = "students"


class Sizes(Part):
    """The sizes of a demo: every student gets the same number of optimiser steps."""

    image_size: int
    crop_fraction: float = 0.875
    teacher: str
    teacher_args: dict[str, Any] = Field(default_factory=dict)
    teacher_epochs: float
    teacher_lr: float = 2e-3
    teacher_mix: Mix = Mix()
    student: str
    student_args: dict[str, Any] = Field(default_factory=dict)
    student_epochs: float
    student_lr: float = 4e-3
    crops: int
    crops_per_image: int = 4
    batch_size: int = 64
    regions: Regions = Regions(thresholds="reliable")
    mix: Mix = Mix()


SCENES = Sizes(
    image_size=64,
    crop_fraction=1.0,  # a digit may stand at the border of the central square
    teacher="timm/resnet10t",
    teacher_args={"channels": [32, 64, 128, 256], "stem_width": 16},
    teacher_epochs=16,
    teacher_lr=4e-3,
    student="timm/resnet10t",
    student_args={"channels": [16, 32, 64, 128], "stem_width": 8},
    student_epochs=12.8,
    crops=24,
    crops_per_image=2,
)
FOLDER = Sizes(
    image_size=112,
    teacher="timm/resnet18",
    teacher_epochs=50,
    teacher_lr=1e-3,
    teacher_mix=Mix(kind="mixup", alpha=0.2, probability=0.5),
    student="timm/mobilenetv3_small_050",
    student_epochs=40,
    crops=30,
    crops_per_image=1,
)


def teacher_recipe(sizes: Sizes, data: Data) -> Recipe:
    """What the teacher is trained by."""
    tree = _recipe(sizes, data, sizes.teacher_epochs, lr=sizes.teacher_lr, evaluations=3)
    tree |= {
        "method": "hard",
        "schedule": {"epochs": sizes.teacher_epochs},
        "student": {"name": sizes.teacher, "model_args": sizes.teacher_args},
        "mix": sizes.teacher_mix.model_dump(),
    }
    return Recipe.model_validate(tree)


def students(sizes: Sizes, data: Data, store: Path, seeds: int) -> Suite:
    """The suite of the students: three methods on the labels in ``store``, one budget."""
    base = _recipe(sizes, data, sizes.student_epochs, lr=sizes.student_lr, evaluations=12)
    base["student"] = {"name": sizes.student, "model_args": sizes.student_args}
    stored = {"store": str(store), "crops_per_image": sizes.crops_per_image}
    mined = {"regions": sizes.regions.model_dump(), "mix": sizes.mix.model_dump()}
    return make_suite(
        {
            "base": base,
            "baseline": "hard",
            "seeds": list(range(seeds)),
            "budgets": {BUDGET: {"epochs": sizes.student_epochs}},
            "methods": {
                "hard": {"method": "hard"},
                "fkd": {"method": "fkd", "data": stored},
                "ferkd": {"method": "ferkd", "data": stored, **mined},
            },
        }
    )


def _recipe(
    sizes: Sizes, data: Data, epochs: float, *, lr: float, evaluations: int
) -> dict[str, Any]:
    """What the teacher's and the students' recipes share."""
    return {
        "data": {
            "images": str(data.train),
            "val": str(data.val),
            "image_size": sizes.image_size,
            "batch_size": sizes.batch_size,
            "workers": 0,
        },
        "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.05},
        "ema": 0.99,
        "precision": _fast_precision(),
        "evaluation": {"every_epochs": epochs / evaluations, "crop_fraction": sizes.crop_fraction},
    }


def _fast_precision() -> str:
    """bf16 where the processor multiplies it natively, else the trainer's own choice."""
    import torch

    native = not torch.cuda.is_available() and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "auto"
