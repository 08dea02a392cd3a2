"""Labelling by two processes against one, and a plan against the measured job, each on one core.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py flowers/train scaling.json [labelling]

With ``labelling`` that alone is measured, and the file keeps what it has of training. Labelling is
counted from its first progress on: loading a teacher is start-up, which the plan leaves out.
Every process is pinned to a core of its own and counts its own CPU seconds: where the core is free
these are its wall seconds, and where other work shares it they are what it would have taken. Runs
of one and of two processes alternate. The rates that the plan rests on are measured between them by
the same clock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ferkd.labelling.run import label, label_shard
from ferkd.store.sharing import Shard
from ferkd.study import rates
from ferkd.study.planning import Cores, Rates, Scale, plan
from ferkd.training import train
from ferkd.training.recipe import Recipe, make_recipe

OF_CLASS, CROPS, SIZE, BATCH, STEPS, ROUNDS = 20, 8, 96, 32, 16, 2
SECONDS = 1.0  # for each rate
OPTIONS: dict[str, Any] = {
    "crops": CROPS,
    "image_size": SIZE,
    "workers": 1,
    "device": "cpu",
    "part_images": 5,  # as many parts for each of two processes, as a large set has
}


def pinned(jobs: list[Callable[[Callable[..., None]], object]]) -> dict[str, float]:
    """Do each job in a process on a core of its own; seconds of the slowest since its last start,
    which a job is given to say that it begins only now."""
    context = multiprocessing.get_context("fork")
    cores = sorted(os.sched_getaffinity(0))
    answers = context.SimpleQueue()

    def work(job: Callable[[Callable[..., None]], object], core: int) -> None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        wall, cpu, begun = time.perf_counter(), time.process_time(), False

        def start(*_: object) -> None:
            nonlocal wall, cpu, begun
            if not begun:
                wall, cpu, begun = time.perf_counter(), time.process_time(), True

        job(start)
        answers.put((time.perf_counter() - wall, time.process_time() - cpu))

    processes = [context.Process(target=work, args=pair) for pair in zip(jobs, cores, strict=False)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    walls, cpus = zip(*(answers.get() for _ in jobs), strict=True)
    return {"wall": max(walls), "cpu": max(cpus)}


def rank_of(world_size: int, rank: int, port: int, recipe: Recipe, out: Path) -> Callable[..., Any]:
    def job(start: object) -> None:
        if world_size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        train(recipe, out)

    return job


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def measured_rates(root: Path, teacher: str, recipe: Recipe, classes: int) -> Rates:
    """Of one core, by its CPU seconds."""
    rates.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    return Rates(
        rates.teacher_rate(
            f"{teacher}&image_size={SIZE}", device="cpu", precision="fp32", seconds=SECONDS
        ),
        rates.student_rate(recipe, classes, SECONDS),
        *rates.loading_rates(root / "photos", SIZE, SECONDS)[:2],
    )


def main(images: Path, result: Path, root: Path, only: bool) -> None:
    classes = sorted(path.name for path in images.iterdir() if path.is_dir())
    for name in classes:
        (root / "photos" / name).mkdir(parents=True)
        for file in sorted((images / name).iterdir())[:OF_CLASS]:
            shutil.copy(file, root / "photos" / name)
    photos, teacher = root / "photos", f"timm/resnet18?random=0&num_classes={len(classes)}"
    data = {"images": str(photos), "store": str(root / "labels"), "image_size": SIZE}
    recipe = make_recipe(
        {
            "method": "fkd",
            "data": {**data, "batch_size": BATCH, "crops_per_image": 4, "workers": 0},
            "student": {"name": "timm/resnet10t"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"steps": STEPS},
            "device": "cpu",
            "precision": "fp32",
        }
    )
    label(photos, teacher, root / "labels", **OPTIONS)  # for training; it warms what is read, too
    runs: dict[str, list[dict[str, float]]] = {}
    found: list[Rates] = []
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for number in range(ROUNDS):
            for count in (1, 2):
                out, port = root / f"labels-{count}-{number}", free_port()
                jobs: list[Callable[..., object]] = [
                    lambda start, i=i, c=count, out=out: label_shard(
                        photos, teacher, out, Shard(i, c), progress=start, **OPTIONS
                    )
                    for i in range(count)
                ]
                runs.setdefault(f"labelling {count}", []).append(pinned(jobs))
                if only:
                    continue
                run = root / f"run-{count}-{number}"
                jobs = [rank_of(count, rank, port, recipe, run) for rank in range(count)]
                runs.setdefault(f"training {count}", []).append(pinned(jobs))
            found.append(pool.apply(measured_rates, (root, teacher, recipe, len(classes))))
    best = {name: {k: min(r[k] for r in list_) for k in list_[0]} for name, list_ in runs.items()}
    mean = Rates(*(max(vars(r)[name] for r in found) for name in vars(found[0])))
    count = sum(1 for _ in photos.glob("*/*"))
    before = json.loads(result.read_text()) if only and result.exists() else {}
    planned = dict(before.get("plan", {}))
    for processes in (1, 2):
        scale = Scale(count, CROPS, len(classes), STEPS * BATCH / count, devices=processes)
        every = Rates(mean.teacher, mean.student, mean.decode * processes, mean.cut * processes)
        labelling = plan(scale, every, Cores(processes, threads=1, workers=1)).labelling
        training = plan(scale, every, Cores(processes, threads=1, workers=0)).training["fkd"]
        for name, work in (("labelling", labelling), ("training", training)):
            key = f"{name} {processes}"
            if key not in best:
                continue
            planned[key] = {
                "planned": work.hours * 3600,
                "measured": best[key]["cpu"],
                "ratio": work.hours * 3600 / best[key]["cpu"],
            }
    report = {
        "images": count,
        "crops": CROPS,
        "rates": vars(mean),
        "load": os.getloadavg(),
        "runs": before.get("runs", {}) | runs,
        "speed_up": before.get("speed_up", {})
        | {
            f"{name} {clock}": best[f"{name} 1"][clock] / best[f"{name} 2"][clock]
            for name in ("labelling", "training")
            for clock in ("cpu", "wall")
            if f"{name} 1" in best
        },
        "plan": planned,
    }
    result.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("speed_up", "plan", "load")}, indent=1))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(folder), "labelling" in sys.argv[3:])
