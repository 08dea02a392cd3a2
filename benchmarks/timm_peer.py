"""Stored labels beside timm's live distillation: accuracy and all CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/timm_peer.py quarter flowers/val TEACHER --out peer.json

The peer is made of timm's own parts: its dataset and loader, ``LogitDistillationTask`` with the
teacher in the loop (what ``--kd-model-name`` of its trainer uses), optimiser and schedule; no
averaged weights on either side. Both get the same images, teacher (a finished run of ferkd whose
network is timm's), student, image size, steps, batch and optimiser settings, and the same signal:
half truth, half teacher at temperature 1. Ours labels crops of every image once and trains all
students from them. All students are evaluated by timm's evaluation loader. Images are decoded anew
in every epoch on both sides. CPU seconds, not the clock's, so other work on the machine matters
less; one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import nn

import ferkd
from ferkd.study.bench.measuring import machine
from ferkd.study.compare.summary import paired
from ferkd.training import train
from ferkd.training.recipe import make_recipe

STUDENT = "resnet10t"
STUDENT_ARGS = {"channels": [16, 32, 64, 128], "stem_width": 8, "stem_type": "deep"}
BATCH, LR, DECAY = 64, 0.004, 0.05


@dataclass(frozen=True)
class Task:
    """What both sides are given."""

    images: str
    val: str
    teacher: Path
    size: int
    steps: int
    crops: int


def network(run: Path) -> nn.Module:
    """The network of a finished run, as timm builds it."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    name = config["architecture"].removeprefix("timm/")
    arguments = config.get("model_args") or {}
    model = timm.create_model(name, num_classes=len(config["class_names"]), **arguments)
    model.load_state_dict(safetensors.torch.load_file(run / "weights.safetensors"))
    cfg: dict[str, Any] = dict(model.pretrained_cfg)
    cfg.update(mean=tuple(config["mean"]), std=tuple(config["std"]))
    model.pretrained_cfg = cfg
    return model


def student_of(classes: int) -> nn.Module:
    """A new student, with a new head."""
    return timm.create_model(STUDENT, num_classes=classes, **STUDENT_ARGS)


def live(task: Task, classes: int, seed: int) -> nn.Module:
    """The student of timm's own distillation with the teacher in the loop."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)  # timm's transforms draw from it
    cpu = torch.device("cpu")
    loader = create_loader(
        create_dataset("", task.images),
        input_size=(3, task.size, task.size),
        batch_size=BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
        device=cpu,
    )
    if len(loader) == 0:
        raise SystemExit(f"{task.images} has fewer than {BATCH} images, one batch")
    student = student_of(classes)
    distillation = LogitDistillationTask(
        student,
        DistillationTeacher(network(task.teacher), device=cpu),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.5,
        temperature=1.0,
        device=cpu,
        verbose=False,
    ).train()
    optimizer = create_optimizer_v2(student, opt="adamw", lr=LR, weight_decay=DECAY)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=task.steps,
        warmup_t=task.steps // 20,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    step = 0
    while step < task.steps:
        for pixels, targets in loader:
            schedule.step_update(step)
            optimizer.zero_grad()
            distillation(pixels, targets)["loss"].backward()
            optimizer.step()
            step += 1
            if step == task.steps:
                break
    return student


def stored(task: Task, labels: Path, seed: int, out: Path) -> nn.Module:
    """The student of ours, trained from the stored labels."""
    epochs = task.steps * BATCH / len(ferkd.LabelStore.open(labels))
    recipe = {
        "method": "fkd",
        "seed": seed,
        "data": {
            "images": task.images,
            "store": str(labels),
            "image_size": task.size,
            "batch_size": BATCH,
            "crops_per_image": 1,
            "workers": 0,
        },
        "student": {"name": f"timm/{STUDENT}", "pretrained": False, "model_args": STUDENT_ARGS},
        "optimizer": {"name": "adamw", "lr": LR, "weight_decay": DECAY},
        "schedule": {"steps": task.steps, "warmup_epochs": epochs / 20},
        "loss": {
            "objective": "kl",
            "options": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
        },
        "evaluation": {"every_epochs": None},
        "precision": "fp32",
    }
    train(make_recipe(recipe), out)
    return network(out)


@torch.inference_mode()
def accuracy(model: nn.Module, task: Task) -> float:
    """Top-1 of ``model`` on the validation images, by timm's evaluation loader, 0 .. 1."""
    cfg = model.pretrained_cfg
    loader = create_loader(
        create_dataset("", task.val),
        input_size=(3, task.size, task.size),
        batch_size=BATCH,
        mean=cfg["mean"],
        std=cfg["std"],
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    model.eval()
    right = [model(pixels).argmax(1) == targets for pixels, targets in loader]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Run both sides and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images")
    parser.add_argument("val")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=275)
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(given.images, given.val, given.teacher, given.size, given.steps, given.crops)
    config = json.loads((task.teacher / "config.json").read_text(encoding="utf-8"))
    classes = len(config["class_names"])
    found: dict[str, list[float]] = {key: [] for key in ("ours", "theirs", "ours_s", "theirs_s")}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        labels = Path(folder) / "labels"
        ferkd.label(
            task.images,
            task.teacher,
            labels,
            crops=task.crops,
            image_size=task.size,
            batch_size=16,
            precision="fp32",
        )
        label_seconds = time.process_time() - begun
        for seed in range(given.seeds):
            begun = time.process_time()
            ours = stored(task, labels, seed, Path(folder) / f"run-{seed}")
            found["ours_s"].append(time.process_time() - begun)
            begun = time.process_time()
            theirs = live(task, classes, seed)
            found["theirs_s"].append(time.process_time() - begun)
            found["ours"].append(accuracy(ours, task))
            found["theirs"].append(accuracy(theirs, task))
            print(json.dumps({"seed": seed, **{k: v[-1] for k, v in found.items()}}), flush=True)
    result = summary(found, label_seconds)
    result |= {
        "command": " ".join(["python benchmarks/timm_peer.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "teacher_top1": accuracy(network(task.teacher), task),
        "settings": {**vars(given), "teacher": str(given.teacher), "out": str(given.out)},
        "versions": {"timm": timm.__version__, "ferkd": ferkd.__version__},
        "machine": machine(),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: result[k] for k in ("label_seconds", "students", "difference")}, indent=1))


def summary(found: dict[str, list[float]], label_seconds: float) -> dict[str, Any]:
    """Accuracies, their paired difference in points, and CPU seconds for 1, 3 and 10 students."""
    both = [
        {seed: 100 * value for seed, value in enumerate(found[side])} for side in ("ours", "theirs")
    ]
    ours, theirs = statistics.mean(found["ours_s"]), statistics.mean(found["theirs_s"])
    return {
        "top1": {"stored": found["ours"], "timm": found["theirs"]},
        "difference": dict(paired(*both) or {}),
        "label_seconds": label_seconds,
        "train_seconds": {"stored": found["ours_s"], "timm": found["theirs_s"]},
        "students": {
            str(count): {"stored": label_seconds + count * ours, "timm": count * theirs}
            for count in (1, 3, 10)
        },
    }


if __name__ == "__main__":
    main()
