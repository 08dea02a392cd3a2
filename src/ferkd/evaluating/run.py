"""How good a student is: accuracy, calibration, and agreement with its teacher's labels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ferkd.crops import cut
from ferkd.evaluating.center_crops import CenterCrops, chunks
from ferkd.evaluating.measures import measure, per_class_accuracy, teacher_agreement
from ferkd.evaluating.predictions import forward, match_classes, predict
from ferkd.images import ImageSource, decode, open_images
from ferkd.loading.crop_sources import match
from ferkd.models.student import check_input, load_run
from ferkd.store import LabelStore
from ferkd.store.manifest import check_kind
from ferkd.system.compute import Normalise, Precision, resolve_device, resolve_precision
from ferkd.system.errors import InputError
from ferkd.system.plain import read_json
from ferkd.system.results import Result
from ferkd.system.storage import local_path

_MOST_PIXELS = 4096  # of a side


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(Result):
    """What :func:`evaluate` found: the figures of :func:`measure`, and on what.

    ``per_class`` has None for a class without images, ``unreadable`` the ids of images left out;
    ``epochs`` is None where the run does not tell. ``agreement`` and ``kl`` are with a store.
    """

    top1: float
    top5: float
    nll: float
    brier: float
    ece: float
    balanced_accuracy: float
    per_class: dict[str, float | None]
    images: int
    unreadable: list[str]
    epochs: float | None
    seconds: float
    crops_per_second: float
    run: str
    agreement: float | None = None
    kl: float | None = None


def evaluate(
    run: str | Path,
    images: str | Path | ImageSource,
    *,
    store: str | Path | LabelStore | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str = "auto",
    precision: Precision = "fp32",
    image_size: int | None = None,
    crop_fraction: float | None = None,
    store_crops: int = 4,
    class_map: str | Path | Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a run's folder, or a weights file beside its config.json, on images.

    ``image_size`` (pixels) and ``crop_fraction`` default to the run's own. ``class_map`` says which
    of the run's classes the folders are, where their names do not. With the teacher's ``store`` of
    these images the agreement with it is measured, too, on the first ``store_crops`` stored crops
    of each image. Raises InputError for classes that do not match,
    images without ground truth, and a store of other images.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("store_crops", store_crops),
    ):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be at least 0")
    if image_size is not None and not 1 <= image_size <= _MOST_PIXELS:
        raise InputError(f"image_size is {image_size}; it must be 1 to {_MOST_PIXELS} pixels")
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise InputError(f"crop_fraction is {crop_fraction:g}; it must be above 0 and at most 1")
    run = local_path(run, "run")
    model, config = load_run(run)
    where = resolve_device(device)
    model = model.to(where)
    size = image_size or config.image_size
    check_input(
        *(model, config.architecture, size, config.num_classes),
        remedy=f"evaluate it at {config.image_size}, the size it was trained for",
    )
    normalise = Normalise(config.mean, config.std, where)
    dtype = resolve_precision(precision, where)
    source = open_images(images)
    targets = torch.from_numpy(source.targets.astype(np.int64))
    if not bool((targets >= 0).any()):
        raise InputError(f"{source.name} has no ground truth; use images in class folders")
    names = config.class_names
    if not names:
        if class_map is None:
            raise InputError(
                f"{run} does not tell the names of its {config.num_classes} classes; say which of "
                "them each folder is by class_map (--class-map sorted: in the folders' order)"
            )
        names = tuple(map(str, range(config.num_classes)))
    targets = match_classes(
        targets, source.class_names, names, source=source.name, class_map=class_map
    )
    crops = CenterCrops(
        source,
        image_size=size,
        crop_fraction=crop_fraction or config.crop_fraction,
        workers=workers,
        exif=config.exif,
        cache_bytes=0,
    )
    started = time.perf_counter()
    found = predict(model, crops, normalise=normalise, dtype=dtype, batch_size=batch_size)
    seconds = time.perf_counter() - started
    targets = targets[found.rows]
    known = targets >= 0
    accuracy = per_class_accuracy(found.logits[known], targets[known])
    agreement: dict[str, float] = {}
    if store is not None:
        agreement = store_agreement(
            model,
            source,
            LabelStore.open(store),
            num_classes=config.num_classes,
            image_size=size,
            normalise=normalise,
            dtype=dtype,
            batch_size=batch_size,
            crops=store_crops,
        )
    return Evaluation(
        **measure(found.logits, targets),
        per_class={
            name: None if np.isnan(value) else float(value)
            for name, value in zip(names, accuracy, strict=True)
        },
        images=len(targets),
        unreadable=[skipped.id for skipped in crops.unreadable],
        epochs=_epochs(run),
        seconds=seconds,
        crops_per_second=len(targets) / seconds,
        run=str(run),
        **agreement,
    )


def store_agreement(
    model: nn.Module,
    images: ImageSource,
    store: LabelStore,
    *,
    num_classes: int,
    image_size: int,
    normalise: Normalise,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
    crops: int = 4,
) -> dict[str, float]:
    """:func:`teacher_agreement` on the first ``crops`` stored crops of every image of the store.

    The student sees the crops that the teacher labelled. Raises InputError when the store is not
    of these images.
    """
    if store.num_classes != num_classes:
        raise InputError(
            f"the labels {store.path} have {store.num_classes} classes, the model {num_classes}; "
            "give labels of the model's classes"
        )
    check_kind(store.geometry, "random", store.path)
    places = match(images, store)
    count = min(crops, store.crops_per_image)
    sums = {"agreement": 0.0, "kl": 0.0}
    total = 0
    for rows in chunks(len(store), max(1, batch_size // count)):
        index = np.asarray(rows)[:, None], np.arange(count)[None]
        boxes, flips = store.boxes(*index), store.flips(*index)
        pixels = np.empty((len(rows), count, image_size, image_size, 3), np.uint8)
        for i, row in enumerate(rows):
            image = decode(images.read(int(places[row])), exif=store.geometry.images.exif)
            for j in range(count):
                cut(image, boxes[i, j], bool(flips[i, j]), image_size, out=pixels[i, j])
        batch = torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2)
        logits = forward(model, batch, normalise, dtype)
        found = teacher_agreement(logits, store.labels(*index).dense())
        sums = {key: sums[key] + value * len(batch) for key, value in found.items()}
        total += len(batch)
    return {key: value / total for key, value in sums.items()}


def _epochs(run: Path) -> float | None:
    path = (run if run.is_dir() else run.parent) / "result.json"
    return read_json(path, "result of a run").get("epochs") if path.is_file() else None
