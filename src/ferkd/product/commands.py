"""What a distillation is going to do, in words and as commands that do it by hand."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ferkd.models.student import Student
from ferkd.product.look import Look
from ferkd.product.planning import Plan, spoken
from ferkd.product.settings import Settings
from ferkd.system.text import size


@dataclass(frozen=True)
class Prepared:
    """What the first phase settles: the images, the teacher's network or the teacher itself, and
    the plan."""

    seen: Look
    plan: Plan
    network: Student | None  # to fine-tune; None: the teacher is used as it is


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people."""
    total = sum(plan.seconds.values())
    phases = ", ".join(f"{name} {spoken(s)}" for name, s in plan.seconds.items())
    return [
        f"plan   about {spoken(total)}: {phases}; labels of {size(plan.label_bytes)}",
        *(f"       {reason}" for reason in plan.reasons),
    ]


def commands(settings: Settings, out: Path, prepared: Prepared) -> dict[str, str]:
    """The command of each phase that does its work by hand."""
    seen, plan = prepared.seen, prepared.plan

    def line(*words: object) -> str:
        return shlex.join(str(word) for word in words)

    spec = settings.teacher if prepared.network is None else out / "teacher"
    sized = (
        ()
        if Path(str(spec)).is_dir() or prepared.network
        else ("--image-size", plan.teacher_image_size)
    )
    found: dict[str, str] = {}
    if prepared.network is not None:
        found["teacher"] = line(
            *("ferkd", "finetune", seen.labelled, "--val", seen.val, "--teacher", settings.teacher),
            *("--image-size", plan.teacher_image_size, "--epochs", f"{plan.teacher_epochs:g}"),
            *("--out", out / "teacher"),
        )
    found["labels"] = line(
        *("ferkd", "label", seen.train, "--teacher", spec, "--crops", plan.crops, *sized),
        *("--out", out / "labels"),
    )
    found["student"] = line("ferkd", "train", out / "student.yaml", "--out", out / "student")
    if settings.baseline:
        found["baseline"] = line("ferkd", "train", out / "baseline.yaml", "--out", out / "baseline")
    found["deliver"] = line("ferkd", "export", out / "student", "--to", out / "model")
    return found


def next_commands(out: Path) -> list[str]:
    """The three commands that come next."""
    model, run, store = (shlex.quote(str(out / n)) for n in ("model", "student", "labels"))
    return [
        f"ferkd predict {model} PHOTO.jpg",
        f"ferkd export {run} --to onnx --onnx",
        f"ferkd inspect {store} --html labels.html",
    ]
