"""The training recipe of a distillation's student and of its baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ferkd.product.look import Look
from ferkd.product.planning import BATCH, Plan
from ferkd.product.rule import Row
from ferkd.product.settings import Settings, parse_student


def student_recipe(
    settings: Settings, out: Path, seen: Look, plan: Plan, row: Row, seed: int
) -> dict[str, Any]:
    """The recipe of one student by the method of ``row``, as plain data for YAML.

    A method that learns from stored labels is given the labels and all images; another one learns
    from the class folders alone, in as many steps.
    """
    student = parse_student(settings.student)
    stored = row.method != "hard"
    every = seen.images + seen.unlabelled
    images = every if stored else seen.images
    steps = max(1, round(plan.epochs * every / BATCH))
    known = student.pretrained or student.weights is not None
    tree: dict[str, Any] = {
        "method": row.method,
        "seed": seed,
        "data": {
            "images": seen.train if stored else seen.labelled,
            "val": seen.val,
            "image_size": plan.image_size,
            "batch_size": BATCH,
            "crops_per_image": plan.crops_per_image,
            "workers": settings.workers,
            "cache": plan.cache,
        },
        "student": student.model_dump(mode="json", exclude_none=True),
        "optimizer": {"name": "adamw", "lr": 5e-4, "layer_decay": 0.8}
        if known
        else {"name": "adamw", "lr": 4e-3},
        "schedule": {"steps": steps, "warmup": 0.1},
        "ema": round(min(0.999, max(0.9, 1 - 10 / steps)), 4),
        "device": settings.device,
        "evaluation": {"every_epochs": max(plan.epochs / 10, 0.1) * every / images},
    }
    if stored:
        tree["data"]["store"] = str((out / "labels").absolute())
    if row.loss:
        tree["loss"] = dict(row.loss)
    return tree
