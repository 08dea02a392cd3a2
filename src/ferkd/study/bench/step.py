"""What training costs by method: seconds per 10,000 crops, whole pipeline, side by side.

Every method trains the same student on the same images for a few steps in each turn. Weights,
labels and classes are random: they do not change what a step costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ferkd.calibration.regions import scores_of
from ferkd.images import open_images
from ferkd.loading.loader import Batch
from ferkd.store import LabelStore, SoftLabels
from ferkd.study.bench.loader import fill
from ferkd.study.bench.made_up import write_labels
from ferkd.study.bench.measuring import Target, described, in_turns, machine, seconds_of, summary
from ferkd.study.bench.photos import PHOTO_SIDES, link_photos, write_photos
from ferkd.system.compute import autocast
from ferkd.system.errors import InputError
from ferkd.system.settings import check_least
from ferkd.system.tables import markdown as table
from ferkd.training.data import TrainingData
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.trainer import Trainer, View

HARD, LIVE, FKD, FERKD = "hard", "kd", "fkd", "ferkd"
CACHED, RESIDENT, FKD_RESIDENT = "ferkd, cached", "ferkd, resident data", "fkd, resident data"
_ENDLESS = 1_000_000_000  # steps: no stretch reaches the end of the run
_CROPS = 10_000  # that the seconds are for
_QUANTILES = (0.05, 0.25, 0.98)  # of the confidences, where the regions' thresholds lie


@dataclass(frozen=True)
class Setting:
    """What all methods train: ``student`` and ``teacher`` are names as in recipes."""

    student: str = "timm/mobilenetv3_small_050"
    teacher: str = "timm/resnet18?random=0"
    image_size: int = 224
    batch_size: int = 64
    crops_per_image: int = 4
    workers: int = 2
    calibration: str = "steps"
    device: str = "auto"
    precision: str = "auto"
    cut: str = "auto"
    compile: bool = False

    def recipe(
        self, method: str, folder: Path, store: LabelStore, *, cached: bool = False
    ) -> dict[str, Any]:
        """The recipe of a method; ferkd has fixed thresholds, and SelfMix on every crop."""
        data: dict[str, Any] = {
            "images": str(folder),
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "crops_per_image": 1 if method == HARD else self.crops_per_image,
            "workers": self.workers,
            "cache": "ram" if cached else "none",
            "cut": self.cut,
        }
        more: dict[str, Any] = {}
        if method == LIVE:
            spec = self.teacher + ("&" if "?" in self.teacher else "?")
            more["teacher"] = f"{spec}num_classes={store.num_classes}"
        if method in (FKD, FERKD):
            data["store"] = str(store.path)
        if method == FERKD:
            scores = scores_of(store)[0]
            thresholds = [float(q) for q in np.quantile(scores, _QUANTILES)]
            more["regions"] = {"thresholds": thresholds, "calibration": self.calibration}
            mixed = {"kind": "selfmix", "operator": "mixup"}  # the operator that costs more
            more["mix"] = mixed if self.crops_per_image > 1 else {"kind": "none"}
        return {
            "method": method,
            "data": data,
            "student": {"name": self.student},
            "schedule": {"steps": _ENDLESS},
            "device": self.device,
            "precision": self.precision,
            "compile": self.compile,
            **more,
        }


@dataclass(frozen=True)
class Resident:
    """A loader whose every step is one batch that is on the device already."""

    batch: Batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for _ in range(start, stop):
            yield self.batch


def bench_step(
    images: str | Path | None = None,
    *,
    setting: Setting | None = None,
    classes: int = 1000,
    photos: int = 256,
    stored_crops: int = 30,
    cached: bool = False,
    steps: int = 8,
    repeats: int = 5,
) -> dict[str, Any]:
    """Seconds per 10,000 crops for hard labels, live distillation, FKD and FerKD.

    ``hard`` shows one crop of an image per decode, the others m. Each turn trains every side for
    ``steps`` steps, those left out in which its workers start. ``images`` is a local folder;
    without one ``photos`` pictures are made. They are linked into ``classes`` folders, which is
    the number of classes that is trained. ``cached`` adds FerKD with decoded images kept in
    memory. "Resident data" is the same step, mixing and loss included, on one batch that is on
    the device already. ``value`` is FerKD's. Raises InputError for counts out of range.
    """
    setting = setting or Setting()
    check_least(1, photos=photos, stored_crops=stored_crops, steps=steps, repeats=repeats)
    check_least(6, classes=classes)
    with tempfile.TemporaryDirectory(prefix="ferkd-bench-") as place:
        root = Path(images) if images is not None else Path(place) / "photos"
        if images is None:
            write_photos(root, photos, sides=PHOTO_SIDES)
        elif not root.is_dir():
            raise InputError(f"{images} is not a local folder; its files are linked to")
        given = open_images(root, targets=False)
        folder = link_photos(given, root, Path(place) / "linked", classes)
        source = open_images(folder)
        store = write_labels(Path(place) / "store", source, stored_crops)

        built = {
            method: _built(setting.recipe(method, folder, store))
            for method in (HARD, LIVE, FKD, FERKD)
        }
        trainers = {method: trainer for method, (trainer, _) in built.items()}
        if cached:
            trainers[CACHED] = _built(setting.recipe(FERKD, folder, store, cached=True))[0]
            loader = cast(Any, trainers[CACHED].loader)
            fill(source, store, loader.cache)
        for name, method in ((RESIDENT, FERKD), (FKD_RESIDENT, FKD)):
            trainers[name] = resident(setting.recipe(method, folder, store))

        waits = {n: 1 + (0 if "resident" in n else 2 * setting.workers) for n in trainers}
        sides = {n: _stretch(t, steps, waits[n]) for n, t in trainers.items()}
        found = {n: summary(v) for n, v in in_turns(sides, repeats, uncounted=1).items()}
        per = {name: side["median"] for name, side in found.items()}
        batch = setting.batch_size
        parts = parts_of_step(*built[FERKD], repeats=max(5, repeats))
        step = per[FERKD] * built[FERKD][1].loader.batch_size / _CROPS
        teacher = built[LIVE][1].teacher
        assert teacher is not None
        forward = forward_seconds(
            {"student": trainers[FERKD].model, "teacher": teacher.module},
            trainers[FERKD],
            (batch, 3, setting.image_size, setting.image_size),
            repeats,
        )
    share = sum(parts.values()) / step
    targets = {
        "forward pass of the teacher / of the student": Target(
            8, forward["teacher"] / forward["student"]
        ),
        f"{FERKD} / {LIVE}, time": Target(0.35, per[FERKD] / per[LIVE], "<="),
        f"{FERKD} / {HARD}, time": Target(0.85, per[FERKD] / per[HARD], "<="),
        f"{FERKD} / {RESIDENT}, throughput": Target(0.95, per[RESIDENT] / per[FERKD]),
        "share of regions, mixing and objective": Target(0.03, share, "<="),
    }
    if cached:
        targets[f"{CACHED} / {RESIDENT}, throughput"] = Target(0.95, per[RESIDENT] / per[CACHED])
    return {
        "benchmark": "step",
        "value": per[FERKD],
        "unit": "seconds per 10,000 crops",
        "baselines": {name: value for name, value in per.items() if name != FERKD},
        "ratios": {name: value / per[FERKD] for name, value in per.items() if name != FERKD},
        "targets": described(targets),
        "details": {
            **vars(setting),
            "device": str(trainers[FERKD].device),
            "precision": str(trainers[FERKD].dtype).removeprefix("torch."),
            "classes": classes,
            "images": len(source),
            "stored_crops": stored_crops,
            "steps": steps,
            "repeats": repeats,
            "seconds_per_10000_crops": found,
            "forward_seconds": forward,
            "forward_ratio": forward["teacher"] / forward["student"],
            "step_seconds": step,
            "seconds_of_parts": parts,
            "share_of_parts": share,
            "share_by_switching_regions_and_mixing_off": 1 - per[FKD_RESIDENT] / per[RESIDENT],
        },
        "machine": machine(),
    }


def resident(recipe: Mapping[str, Any]) -> Trainer:
    """A trainer of ``recipe`` that is given its first batch again and again, on the device."""
    trainer = _built(recipe)[0]
    with closing(cast(Any, trainer.loader.batches(0, 1))) as batches:
        batch = next(batches)
    trainer.loader = Resident(batch.to(trainer.device).cut())
    return trainer


def parts_of_step(trainer: Trainer, data: TrainingData, *, repeats: int) -> dict[str, float]:
    """Seconds that FerKD's own parts take of a step, each alone: regions, mixing, objective.

    The objective is timed forward and backward, down to the logits' gradient.
    """
    store, mining, device = data.store, data.mining, trainer.device
    assert store is not None and mining is not None
    with closing(cast(Any, trainer.loader.batches(0, 1))) as batches:
        batch: Batch = next(batches)
    m = data.loader.crops_per_image
    rows, crops = batch.rows.numpy()[::m], batch.crops.numpy().reshape(-1, m)
    stored = store.labels(rows[:, None], crops)
    on_device = batch.to(device).cut()
    assert on_device.labels is not None
    images, labels, targets = trainer.normalise(on_device.images), on_device.labels, batch.targets
    mixer = trainer.mixer
    mixed, mixed_targets = images, on_device.targets
    mixed_labels: SoftLabels | None = labels
    if mixer is not None:
        mixed, mixed_labels, mixed_targets = mixer(0, images, labels, on_device.targets)
    view = View(mixed, mixed_labels, mixed_targets, on_device.rows, on_device.crops)
    logits = torch.zeros(len(batch), data.num_classes, device=device, requires_grad=True)

    def objective() -> None:
        trainer.objective(logits, view).backward()  # type: ignore[no-untyped-call]
        logits.grad = None

    def mixing() -> object:
        return None if mixer is None else mixer(0, images, labels, on_device.targets)

    sides: dict[str, Callable[[], object]] = {
        "regions": lambda: mining.calibrate(stored, targets, rows, crops),
        "mixing": mixing,
        "objective": objective,
    }
    return _medians(sides, device, repeats)


def forward_seconds(
    models: Mapping[str, nn.Module],
    trainer: Trainer,
    shape: tuple[int, int, int, int],
    repeats: int,
) -> dict[str, float]:
    """Seconds of each model's forward pass over normalised images of ``shape``, evaluating."""
    images: Tensor = torch.randn(shape, device=trainer.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def forward(model: nn.Module) -> Callable[[], object]:
        def run() -> object:
            model.eval()
            with torch.inference_mode(), autocast(trainer.device, trainer.dtype):
                return model(images)

        return run

    return _medians({n: forward(m) for n, m in models.items()}, trainer.device, repeats)


def _medians(
    sides: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    def timed(side: Callable[[], object]) -> Callable[[int], float]:
        return lambda turn: seconds_of(side, device)

    turns = in_turns({name: timed(side) for name, side in sides.items()}, repeats, uncounted=1)
    return {name: summary(values)["median"] for name, values in turns.items()}


def _built(recipe: Mapping[str, Any]) -> tuple[Trainer, TrainingData]:
    trainer, data, _ = build_trainer(make_recipe(dict(recipe)))
    return trainer, data


def _stretch(trainer: Trainer, steps: int, waits: int) -> Callable[[int], float]:
    """Seconds per 10,000 crops of ``steps`` steps, ``waits`` more before them left out.

    The run goes on behind the stretch until it is closed, so its workers are as far ahead at the
    end as at the beginning: no batch is counted that was loaded before.
    """

    def measure(turn: int) -> float:
        with closing(cast(Any, trainer.run())) as run:
            for _ in range(waits):
                next(run)
            crops = trainer.crops

            def some() -> None:
                for _ in range(steps):
                    next(run)

            seconds = seconds_of(some, trainer.device)
            crops = trainer.crops - crops
        trainer.mean_loss()  # empties the list of losses
        return seconds / crops * _CROPS

    return measure


def markdown(result: dict[str, Any]) -> str:
    """The report of `bench_step` as a Markdown table."""
    found = result["details"]["seconds_per_10000_crops"]
    ours = found[FERKD]["median"]
    rows = [
        [name, f"{side['median']:.1f}", f"{side['median'] / ours:.2f}"]
        for name, side in found.items()
    ]
    return table(["side", "seconds per 10,000 crops", "of ferkd's"], rows, figures=True)
