"""The whole pipeline in one call: data, teacher, labels, students by three methods, report."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from ferkd.calibration.regions import Regions
from ferkd.images import refuse_inside_images, refuse_other_sources
from ferkd.labelling.run import Progress, label
from ferkd.loading.mixing import Mix
from ferkd.store import LabelStore
from ferkd.study.demo import data as demo_data
from ferkd.study.demo.summary import methods_of, text_table, write_report
from ferkd.system.errors import InputError
from ferkd.system.files import sweep, write_json
from ferkd.system.locks import held
from ferkd.system.plain import read_json
from ferkd.system.settings import Part
from ferkd.system.storage import local_path
from ferkd.training import folder as folders
from ferkd.training import train
from ferkd.training.progress import Meter, no_meter, on_a_bar
from ferkd.training.recipe import Recipe

METHODS = ("hard", "fkd", "ferkd")
_MARKER, _TIME = "demo.json", "time.json"
_OURS = ("data", "teacher", "labels", "runs", "report.html", "result.json", _TIME, _MARKER)


class Plan(Part):
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


SCENES = Plan(
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
FOLDER = Plan(
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


def run_demo(
    out: Path,
    *,
    images: Path | None = None,
    seeds: int = 1,
    held_out: float = 0.2,
    resume: bool = False,
    overwrite: bool = False,
    plan: Plan | None = None,
    say: Callable[[str], None] = print,
    meter: Meter = no_meter,
) -> dict[str, Any]:
    """Run everything into the folder ``out``; returns the result with a printable ``table``.

    ``images`` None makes the embedded scenes; else a folder with ``train`` and ``val``, or class
    folders of which ``held_out`` is set aside. ``seeds`` students are trained by each method.
    ``meter`` shows how far each step is.
    Raises InputError; an interrupted demo continues with ``resume`` and the same settings.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; train at least 1 student by each method")
    plan = plan or (SCENES if images is None else FOLDER)
    out = local_path(out)
    if images is not None:
        refuse_other_sources(images, "the demo")
        images = local_path(images, "folder of images")
    refuse_inside_images(out, images)
    if images is not None:
        demo_data.check(images, held_out)
    busy = f"{out} is being written by another ferkd demo; wait for it, or give another --out"
    _claim(out, plan, images, held_out, resume=resume, overwrite=overwrite, look=True)
    with held(out, busy):
        _claim(out, plan, images, held_out, resume=resume, overwrite=overwrite)
        with _Clock(out / _TIME) as clock:
            return _run(out, plan, images, held_out, seeds, say, meter, clock)


class _Clock:
    """Seconds spent on a demo in all, those before interruptions included."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun, self._before = path, time.perf_counter(), 0.0
        if path.is_file():
            self._before = float(read_json(path, "time of a demo").get("seconds", 0.0))

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begun

    def keep(self) -> None:
        """Write the time so far down: what a kill loses is what came after."""
        write_json(self._path, {"seconds": self.seconds})

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(InputError):  # a full disk has been said already
            self.keep()


def _run(
    out: Path,
    plan: Plan,
    images: Path | None,
    held_out: float,
    seeds: int,
    say: Callable[[str], None],
    meter: Meter,
    clock: _Clock,
) -> dict[str, Any]:
    data = demo_data.prepare(out / "data", images, held_out)
    say(f"images: {data.train} and {data.val}")
    teacher = _train(out / "teacher", _teacher(plan, data), "teacher", say, meter)
    clock.keep()
    store = _label(out, plan, data, say, meter)
    clock.keep()
    runs: dict[str, list[Path]] = {method: [] for method in METHODS}
    results: list[dict[str, Any]] = []
    for seed in range(seeds):
        for method in METHODS:
            run = out / "runs" / f"{method}-{seed}"
            recipe = _student(plan, data, method, seed, out / "labels")
            results.append(_train(run, recipe, f"{method}, seed {seed}", say, meter))
            runs[method].append(run)
            clock.keep()
    result: dict[str, Any] = {
        "methods": methods_of(results, METHODS),
        "teacher": {key: teacher[key] for key in ("top1", "nll", "ece", "seconds")},
        "seeds": seeds,
        "plan": plan.model_dump(mode="json"),
    }
    result |= write_report(
        out / "report.html",
        plan=plan,
        data=data,
        store=store,
        teacher=teacher,
        results=results,
        runs=runs,
        seconds=clock.seconds,
        command=_command(out, images, seeds, held_out),
    )
    result["seconds"] = clock.seconds
    write_json(out / "result.json", result)
    return {**result, "table": text_table(result)}


def _command(out: Path, images: Path | None, seeds: int, held_out: float) -> str:
    """The command that makes such a demo again, in a folder beside this one."""
    words = ["ferkd", "demo", "--out", f"{out}-again"]
    if images is not None:
        words += ["--images", str(images)]
        if not (images / "train").is_dir():
            words += ["--held-out", f"{held_out:g}"]
    return shlex.join([*words, "--seeds", str(seeds)] if seeds > 1 else words)


def _claim(
    out: Path,
    plan: Plan,
    images: Path | None,
    held_out: float,
    *,
    resume: bool,
    overwrite: bool,
    look: bool = False,
) -> None:
    """Take a folder for the demo, or refuse it; nothing but a demo's own files is ever removed.

    With ``look`` it is only refused where it would be.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    settings = {
        "plan": plan.model_dump(mode="json"),
        "images": None if images is None else str(images),
        "held_out": held_out,
    }
    marker = out / _MARKER
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    if out.exists() and any(not folders.is_trace(file.name) for file in out.iterdir()):
        if not marker.is_file():
            raise InputError(f"{out} is not empty and not a demo's folder; give another --out")
        if overwrite:
            for name in () if look else _OURS:
                path = out / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        elif not resume:
            raise InputError(
                f"{out} holds a demo already; continue it with --resume, replace it with "
                "--overwrite, or give another --out"
            )
        elif read_json(marker, "demo's settings") != settings:
            raise InputError(
                f"{out} holds a demo with other settings; give the same ones, or --overwrite"
            )
    if not look:
        sweep(out)
        write_json(marker, settings)


def _train(
    out: Path, recipe: Recipe, title: str, say: Callable[[str], None], meter: Meter
) -> dict[str, Any]:
    with meter(title) as advance:
        progress = on_a_bar(advance, lambda words: say(f"{title}: {words}"))
        # Where a run is, and whether it was interrupted, is the demo's business: always resume.
        result = train(recipe, out, resume=True, progress=progress)
    say(f"{title}: top-1 {result['top1']:.1%} after {result['steps']} steps")
    return result


def _label(
    out: Path, plan: Plan, data: demo_data.Data, say: Callable[[str], None], meter: Meter
) -> LabelStore:
    last: list[Progress] = []
    with meter("labelling") as advance:

        def progress(now: Progress) -> None:
            last[:] = [now]
            advance(now.done, now.total, f"images, {now.crops_per_second:.0f} crops/s")

        store = label(
            data.train,
            out / "teacher",
            out / "labels",
            crops=plan.crops,
            image_size=plan.image_size,
            workers=1,
            resume=True,
            progress=progress,
        )
    rate = f", {last[-1].crops_per_second:.0f} crops/s" if last else ""
    say(f"labels: {len(store)} images x {store.crops_per_image} crops{rate}")
    return store


def _teacher(plan: Plan, data: demo_data.Data) -> Recipe:
    tree = _recipe(plan, data, epochs=plan.teacher_epochs, lr=plan.teacher_lr, evaluations=3)
    tree |= {
        "method": "hard",
        "student": {"name": plan.teacher, "model_args": plan.teacher_args},
        "mix": plan.teacher_mix.model_dump(),
    }
    return Recipe.model_validate(tree)


def _student(plan: Plan, data: demo_data.Data, method: str, seed: int, store: Path) -> Recipe:
    tree = _recipe(plan, data, epochs=plan.student_epochs, lr=plan.student_lr, evaluations=12)
    tree |= {
        "method": method,
        "seed": seed,
        "student": {"name": plan.student, "model_args": plan.student_args},
    }
    if method != "hard":
        tree["data"] |= {"store": str(store), "crops_per_image": plan.crops_per_image}
    if method == "ferkd":
        tree |= {"regions": plan.regions.model_dump(), "mix": plan.mix.model_dump()}
    return Recipe.model_validate(tree)


def _recipe(
    plan: Plan, data: demo_data.Data, *, epochs: float, lr: float, evaluations: int
) -> dict[str, Any]:
    """What the teacher's and the students' recipes share."""
    return {
        "data": {
            "images": str(data.train),
            "val": str(data.val),
            "image_size": plan.image_size,
            "batch_size": plan.batch_size,
            "workers": 0,
        },
        "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.05},
        "schedule": {"epochs": epochs},
        "ema": 0.99,
        "precision": _fast_precision(),
        "evaluation": {"every_epochs": epochs / evaluations, "crop_fraction": plan.crop_fraction},
    }


def _fast_precision() -> str:
    """bf16 where the processor multiplies it natively, else the trainer's own choice."""
    import torch

    native = not torch.cuda.is_available() and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "auto"
