"""The rates that a plan rests on, measured here in a few seconds each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from ferkd.crops import cut, random_boxes
from ferkd.images import decode, open_images
from ferkd.models.committee import load_committee
from ferkd.models.student import build_student, check_input, normalisation
from ferkd.system.compute import Normalise, autocast, resolve_device, resolve_precision
from ferkd.training.optim import build_optimizer

if TYPE_CHECKING:
    from ferkd.training.recipe import Recipe

SECONDS = 3.0  # per measurement
_BATCH = {"cuda": 256, "cpu": 32}
_PHOTO = (375, 500)  # height and width of the picture decoded where no images are at hand


def student_rate(recipe: Recipe, classes: int, seconds: float = SECONDS) -> float:
    """Crops per second of the recipe's student: training steps on one resident batch."""
    device = resolve_device(recipe.device)
    dtype = resolve_precision(recipe.precision, device)
    size = recipe.data.image_size
    model = build_student(recipe.student, classes, image_size=size)
    check_input(model, recipe.student.name, size, classes)
    normalise = Normalise(*normalisation(recipe.student, model), device)
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=form).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(recipe.optimizer, model)
    count = _BATCH.get(device.type, 32)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8).to(device)
    targets = torch.randint(0, classes, (count,)).to(device)

    def step() -> None:
        with autocast(device, dtype):
            logits = model(normalise(images).contiguous(memory_format=form))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return count / _seconds_each(step, seconds, device)


def teacher_rate(
    spec: str, *, device: str = "auto", precision: str = "auto", seconds: float = SECONDS
) -> float:
    """Crops per second of a teacher's forward pass on one resident batch."""
    teacher = load_committee(spec, device=device, precision=precision)
    place = resolve_device(device)
    count = _BATCH.get(place.type, 32)
    images = {
        size: torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        for size in teacher.sizes
    }
    return count / _seconds_each(lambda: teacher(images), seconds, place)


class Loading(NamedTuple):
    """Rates of this machine's cores together, one core measured and the rest assumed alike.

    ``decode`` in images per second, ``cut`` in crops per second, ``image_bytes`` and ``pixels`` of
    a mean file, ``what`` was read.
    """

    decode: float
    cut: float
    image_bytes: int
    pixels: int
    what: str


def cores_here() -> int:
    """The cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return count or 1


def loading_rates(images: str | Path, image_size: int, seconds: float = SECONDS) -> Loading:
    """How fast images are decoded and random crops of them cut to ``image_size`` pixels.

    Without the folder ``images`` a made picture of 500 x 375 pixels stands in.
    """
    cores = cores_here()
    if Path(images).is_dir():
        source = open_images(images)
        taken = np.unique(np.linspace(0, len(source) - 1, min(64, len(source))).astype(int))
        files = [source.read(int(i)) for i in taken]
        what = f"{len(files)} images of {images}"
    else:
        coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, _PHOTO[::-1], interpolation=cv2.INTER_CUBIC)
        files = [cv2.imencode(".jpg", photo)[1].tobytes()]
        what = f"a made picture of {_PHOTO[1]}x{_PHOTO[0]} pixels"

    def turn() -> None:
        for data in files:
            decode(data)

    cpu = torch.device("cpu")
    each = _seconds_each(turn, seconds / 2, cpu) / len(files)
    pictures = [decode(data) for data in files]
    heights, widths = np.array([picture.shape[:2] for picture in pictures]).T
    ids = [str(number) for number in range(len(files))]
    boxes, flips = random_boxes(heights, widths, crops=4, seed=0, ids=ids)

    def cuts() -> None:
        for picture, four, mirrored in zip(pictures, boxes, flips, strict=True):
            for box, flip in zip(four, mirrored, strict=True):
                cut(picture, box, bool(flip), image_size)

    each_crop = _seconds_each(cuts, seconds / 2, cpu) / (4 * len(files))
    return Loading(
        cores / each,
        cores / each_crop,
        round(float(np.mean([len(data) for data in files]))),
        round(float(np.mean(heights * widths))),
        f"{what}, one core times {cores}",
    )


def _seconds_each(step: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The median time of ``step``, run for ``seconds`` and at least 3 times after a first one."""
    step()
    _wait(device)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
