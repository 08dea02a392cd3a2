"""Labelling a sample of a store's crops again, and how far the answers may lie apart.

A stored log-probability stands for an interval: all the values that are encoded by the same bytes
(:func:`encoded_range`). The teacher's answer of today must lie in it, give or take the rounding of
its own arithmetic, which depends on batch shapes, libraries and devices (:data:`ROUNDING`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ferkd.crops import CUT_RULE, cut
from ferkd.images import DECODER, ImageSource, decode
from ferkd.labelling.maps import MapTeacher
from ferkd.models.classes import Matching
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.store.reader import LabelStore
from ferkd.store.records import RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.store.structure import REMEDY
from ferkd.system.errors import InputError

# How far a logit may move by rounding, as a share of the spread of its crop's logits (at least 1):
# twice the step of the numbers that are multiplied (fp32 convolutions run in TF32 on CUDA, with
# the 11 bits of fp16), twice more in half precision, where sums are rounded as well.
ROUNDING = {"fp32": 2.0**-10, "fp16": 2.0**-9, "bf16": 2.0**-6}
_SAME = ("fingerprint", "num_classes", "image_size", "mean", "std", "precision")


def replay(
    store: LabelStore,
    source: ImageSource,
    teacher: str | Path | nn.Module | Teacher,
    sample: int,
    seed: int,
    device: str,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Figures, and the crops whose answer lies outside of what their record can stand for.

    Raises InputError for a teacher other than the recorded one, and for labels whose crops this
    release cannot cut or whose record names no teacher.
    """
    loaded = _same_teacher(store, teacher, device)
    total = len(store) * store.crops_per_image
    chosen = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
    rows, crops = np.divmod(np.sort(chosen), store.crops_per_image)
    records = store.records(rows, crops)
    if store.geometry.crops.is_map:
        logits = _cell_answers(store, source, loaded, rows, crops)
    else:
        logits = _answers(store, source, loaded, rows, crops)
    told = SoftLabels.from_logits(logits).log_probs.double().numpy()
    labels = store.record.decode(records, store.truth(rows) >= 0)
    stored = labels.log_probs.double().numpy()
    classes = labels.classes.numpy()
    told_of_stored = np.take_along_axis(told, classes, 1)
    low, high = encoded_range(store.record, records)
    spread = (logits.amax(1) - logits.amin(1)).clamp_min(1).double().numpy()
    slack = ROUNDING[loaded.precision] * spread
    beyond = np.maximum(low - told_of_stored, told_of_stored - high).max(1)
    answer = labels.top1().numpy()
    behind = told.max(1) - np.take_along_axis(told, answer[:, None], 1)[:, 0]
    errors = np.abs(told_of_stored - stored)[np.isfinite(low)]  # less those at the end of the code
    sums = labels.log_probs.double().exp().sum(1) + labels.tail[:, 0].double().exp()
    figures = {
        "replayed_crops": len(rows),
        "log_prob_error_max": float(errors.max(initial=0.0)),
        "log_prob_error_mean": float(errors.mean()) if errors.size else 0.0,
        "beyond_encoding_max": float(np.maximum(beyond, 0).max(initial=0.0)),
        "rounding_allowed": float(slack.max(initial=0.0)),
        "argmax_agreement": float((told.argmax(1) == answer).mean()) if len(rows) else 1.0,
        "sum_error_max": float((sums - 1).abs().max()) if len(rows) else 0.0,
    }
    # A stored answer may trail today's by what its record cannot tell apart plus both roundings.
    trailing = behind > (high - low).min(1) + 2 * slack
    note = ""
    if store.geometry.images.decoder != DECODER:
        note = f" (decoded by {DECODER}, labelled with {store.geometry.images.decoder})"
    offenders = []
    for i in np.flatnonzero((beyond > slack) | trailing):
        where = f"{store.ids[int(rows[i])]}, crop {crops[i]}"
        off = max(beyond[i], behind[i] if trailing[i] else -math.inf)
        what = (
            f"the teacher's answer lies {off:.3g} nats from what is stored, "
            f"{slack[i]:.3g} is rounding{note}"
        )
        offenders.append((where, what))
    return figures, offenders


def encoded_range(
    record: RecordFormat, records: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and highest log-probabilities, float64 [n, k] each, that encode to ``records``.

    A u8 code c is the nearest to 48 sqrt(gap), so the gap lies between ((c - 1/2) / 48)^2 and
    ((c + 1/2) / 48)^2, and anywhere above for c = 255; f16 and f32 gaps are rounded by half a
    unit in the last place. The largest log-probability is -log(sum of exp(-gap), tail included),
    lowest where all gaps are. With k = 1 and u8 this is the tail's interval alone.
    """
    low, high = (np.zeros((len(records), record.k)) for _ in range(2))
    if record.k > 1 or record.full:
        stored = slice(0 if record.full else 1, None)
        low[:, stored], high[:, stored] = _gap_range(record, records["gaps"])
    most, least = np.exp(-low).sum(1), np.exp(-high).sum(1)
    if not record.full:
        tail_low, tail_high = _gap_range(record, records["tail"][:, 0])
        others = record.num_classes - record.k
        most, least = most + others * np.exp(-tail_low), least + others * np.exp(-tail_high)
    return -np.log(most)[:, None] - high, -np.log(least)[:, None] - low


def _gap_range(
    record: RecordFormat, stored: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    value = stored.astype(np.float64)
    if record.values == "u8":
        low, high = (np.maximum(value - 0.5, 0) / 48) ** 2, ((value + 0.5) / 48) ** 2
        return low, np.where(stored == 255, np.inf, high)
    relative, absolute = {"f16": (2.0**-11, 2.0**-25), "f32": (2.0**-24, 2.0**-150)}[record.values]
    margin = value * relative + absolute
    return np.maximum(value - margin, 0), value + margin


def _same_teacher(
    store: LabelStore, teacher: str | Path | nn.Module | Teacher, device: str
) -> Teacher:
    recorded, rule = store.settings.teacher, store.geometry.crops.rule
    if "fingerprint" not in recorded:
        raise InputError(
            f"the labels of {store.path} record no single teacher (imported or merged labels do "
            "not), so they cannot be replayed; verify them without --teacher"
        )
    if rule != CUT_RULE:
        raise InputError(
            f"the labels of {store.path} were made with the crop rule {rule!r}, this release cuts "
            f"by {CUT_RULE!r}; replay them with the release that made them"
        )
    size = recorded.get("image_size")
    if size is not None and type(size) is not int:
        raise InputError(f"{store.path} records the image_size {str(size)[:80]!r}; {REMEDY}")
    loaded = load_teacher(
        teacher,
        image_size=size,
        device=device,
        precision=recorded.get("precision", "auto"),
    )
    if matched := recorded.get("class_map"):
        loaded = loaded.matched(_matching(matched, store), store.class_names)
    given = loaded.describe()
    for key in _SAME:
        if given[key] != recorded.get(key):
            raise InputError(
                f"teacher {loaded.spec} is not the one that made the labels of {store.path}: its "
                f"{key} is {given[key]}, recorded is {recorded.get(key)}; give the teacher "
                f"{recorded.get('spec')}"
            )
    return loaded


def _matching(told: Any, store: LabelStore) -> Matching:
    """The recorded class map; InputError for what is none."""
    classes = told.get("classes") if isinstance(told, dict) else None
    if not isinstance(classes, list) or not all(type(number) is int for number in classes):
        raise InputError(f"{store.path} records a class map without class numbers; {REMEDY}")
    return Matching(tuple(classes), str(told.get("by")))


def _batch(store: LabelStore) -> int:
    """The recorded number of crops of a forward pass, with which rounding is the same."""
    recorded = store.settings.teacher.get("batch_size")
    return recorded if isinstance(recorded, int) and recorded > 0 else 64


def _answers(
    store: LabelStore,
    source: ImageSource,
    teacher: Teacher,
    rows: NDArray[np.integer],
    crops: NDArray[np.integer],
) -> torch.Tensor:
    """The teacher's logits of these crops, float32 [n, C] on the CPU."""
    places = {image_id: place for place, image_id in enumerate(source.ids)}
    boxes, flips = store.boxes(rows, crops), store.flips(rows, crops)
    size = teacher.image_size
    batch = _batch(store)
    answers = [torch.zeros(0, teacher.num_classes)]
    pixels, decoded = np.zeros(0, np.uint8), -1
    for start in range(0, len(rows), batch):
        members = range(start, min(start + batch, len(rows)))
        images = np.empty((len(members), size, size, 3), np.uint8)
        for i in members:
            if rows[i] != decoded:
                decoded = int(rows[i])
                data = source.read(places[store.ids[decoded]])
                pixels = decode(data, exif=store.geometry.images.exif)
            cut(pixels, boxes[i], bool(flips[i]), size, out=images[i - start])
        answers.append(teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).cpu())
    return torch.cat(answers)


def _cell_answers(
    store: LabelStore,
    source: ImageSource,
    teacher: Teacher,
    rows: NDArray[np.integer],
    cells: NDArray[np.integer],
) -> torch.Tensor:
    """The teacher's logits of cells of label maps, float32 [n, C] on the CPU.

    Raises InputError for a teacher whose maps are of another size than the store's.
    """
    by_cell, grid = MapTeacher(teacher), store.geometry.crops
    if (by_cell.rows, by_cell.columns) != (grid.rows, grid.columns):
        raise InputError(
            f"teacher {teacher.spec} makes maps of {by_cell.rows}x{by_cell.columns} cells, but "
            f"those of {store.path} are of {grid.rows}x{grid.columns}; give the teacher that made "
            "them"
        )
    places = {image_id: place for place, image_id in enumerate(source.ids)}
    size = teacher.image_size
    batch = _batch(store)
    several, of_several = np.unique(rows, return_inverse=True)
    answers = torch.empty(len(rows), teacher.num_classes)
    for start in range(0, len(several), batch):
        members = several[start : start + batch]
        images = np.empty((len(members), size, size, 3), np.uint8)
        for i, row in enumerate(members):
            data = source.read(places[store.ids[int(row)]])
            pixels = decode(data, exif=store.geometry.images.exif)
            cut(pixels, (0, 0, *pixels.shape[:2]), False, size, out=images[i])
        maps = by_cell({size: torch.from_numpy(images).permute(0, 3, 1, 2)}).cpu()
        here = np.flatnonzero((of_several >= start) & (of_several < start + len(members)))
        answers[here] = maps[(of_several[here] - start) * grid.count + cells[here]]
    return answers
