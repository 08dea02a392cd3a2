"""What a delivered model does on the validation images, in figures and pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.measures import measure, per_class_accuracy
from ferkd.evaluating.predictions import match_classes, predict
from ferkd.images import open_images
from ferkd.models.student import load_run
from ferkd.models.teacher import Teacher
from ferkd.product.result import Difference
from ferkd.system.compute import Normalise, resolve_device
from ferkd.system.statistics import mean, mean_interval

BINS = 10
_TIMED = 20


@dataclass(frozen=True)
class Figures:
    """Figures of a model on N validation images with C classes.

    ``confusion`` int64 [C, C]: images of class i answered as j. ``reliability``: mean confidence,
    accuracy and images of each of :data:`BINS` equal bins. ``worst``: ids, answers, probabilities
    of the most confident errors, worst first. ``right``: by id, whether the answer is.
    """

    top1: float
    nll: float
    ece: float
    per_class: tuple[float, ...]
    confusion: NDArray[np.int64]
    reliability: tuple[tuple[float, float, int], ...]
    worst: tuple[tuple[str, int, int, float], ...]  # id, true class, answer, its probability
    right: Mapping[str, bool] = field(default_factory=dict)


def compared(ours: Figures, theirs: Figures) -> Difference | None:
    """``ours`` less ``theirs`` in top-1, paired by image; None for fewer than two images in both.

    The interval is Student's of the mean of the images' differences (1, 0 or -1): of these two
    models on such images. It does not hold what another seed of training would change.
    """
    both = ours.right.keys() & theirs.right.keys()
    differences = [100.0 * (ours.right[one] - theirs.right[one]) for one in both]
    interval = mean_interval(differences)
    if interval is None:
        return None
    return Difference(mean(differences), *interval, len(both))


def figures_of(run: Path, val: str, workers: int, device: str) -> Figures:
    """The figures of a finished run on the class folders ``val``."""
    model, config = load_run(run)
    where = resolve_device(device)
    source = open_images(val)
    crops = CenterCrops(
        source,
        image_size=config.image_size,
        crop_fraction=config.crop_fraction,
        workers=workers,
        exif=config.exif,
    )
    found = predict(
        model.to(where), crops, normalise=Normalise(config.mean, config.std, where), batch_size=32
    )
    targets = match_classes(
        found.targets, source.class_names, config.class_names, source=source.name
    )
    return _figures(found.logits, targets, [source.ids[row] for row in found.rows.tolist()])


def teacher_figures(teacher: Teacher, val: str, workers: int) -> Figures:
    """The figures of a teacher whose classes are those of the folders ``val``, by name."""
    source = open_images(val)
    crops = CenterCrops(
        source,
        image_size=teacher.image_size,
        crop_fraction=teacher.crop_fraction,
        workers=workers,
    )
    logits, rows = [], []
    for pixels, numbers in crops.batches(16):
        logits.append(teacher(pixels).cpu())
        rows.append(numbers)
    places = torch.cat(rows)
    targets = torch.from_numpy(source.targets.astype(np.int64))[places]
    return _figures(torch.cat(logits), targets, [source.ids[row] for row in places.tolist()])


def milliseconds(model: nn.Module, image_size: int, device: torch.device) -> float:
    """Median milliseconds of a forward pass over one image, decoding left out."""
    image = torch.randn(1, 3, image_size, image_size, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    times = []
    with torch.inference_mode():
        for _ in range(_TIMED + 3):
            begun = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times[3:])


def _figures(logits: Tensor, targets: Tensor, ids: list[str]) -> Figures:
    known = targets >= 0
    logits, targets = logits[known], targets[known]
    ids = [one for one, kept in zip(ids, known.tolist(), strict=True) if kept]
    classes = logits.shape[1]
    found = measure(logits, targets)
    probabilities = logits.double().softmax(1)
    confidence, answers = probabilities.max(1)
    confusion = torch.bincount(targets * classes + answers, minlength=classes**2)
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    right = (answers == targets).double()
    bins = []
    for number in range(BINS):
        inside = place == number
        count = int(inside.sum())
        if count:
            bins.append((float(confidence[inside].mean()), float(right[inside].mean()), count))
    wrong = torch.where(answers != targets)[0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:12].tolist()
    return Figures(
        top1=found["top1"],
        nll=found["nll"],
        ece=found["ece"],
        per_class=tuple(per_class_accuracy(logits, targets).tolist()),
        confusion=confusion.view(classes, classes).numpy(),
        reliability=tuple(bins),
        worst=tuple(
            (ids[i], int(targets[i]), int(answers[i]), float(confidence[i])) for i in worst
        ),
        right=dict(zip(ids, (answers == targets).tolist(), strict=True)),
    )
