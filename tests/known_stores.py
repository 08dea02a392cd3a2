"""A store written part by part with content known beforehand, for the tests of the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ferkd.crops import CUT_RULE, CropDistribution
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.store.writer import StoreWriter, listing

IDS = sorted(["a/1.jpg", "a/my.photo.v2.jpg", "a/my.photo.v2.png", "b/é 漢.jpg", "b/x\ny.jpg"])
CROPS, CLASSES = 3, 10


def store_settings(ids=IDS, part_images=2, **changes) -> manifests.Settings:
    values = {
        "record": manifests.Record(**vars(RecordFormat.choose(4, CLASSES))),
        "crops": manifests.Crops(
            count=CROPS, distribution=CropDistribution(), seed=0, rule=CUT_RULE
        ),
        "images": manifests.Images(decoder="test", exif=True, listing=listing(ids)),
        "teacher": {"spec": "test"},
        "class_names": tuple(f"class {i}" for i in range(CLASSES)),
        "targets": True,
        "part_images": part_images,
        "software": "test",
    }
    return manifests.Settings(**{**values, **changes})


def content(ids=IDS):
    """Labels, boxes, flips and targets that depend on an image's place alone."""
    rng = np.random.default_rng(len(ids))
    logits = torch.from_numpy(rng.normal(0, 2, (len(ids) * CROPS, CLASSES)))
    targets = rng.integers(-1, CLASSES, len(ids))
    labels = SoftLabels.from_logits(logits, torch.from_numpy(np.repeat(targets, CROPS)), 4)
    boxes = rng.integers(1, 150, (len(ids) * CROPS, 4))  # inside images of 300 pixels' height
    return labels, boxes, rng.random(len(ids) * CROPS) < 0.5, targets


def write_part(writer: StoreWriter, part: int, ids=IDS, skip: str | None = None) -> None:
    labels, boxes, flips, targets = content(ids)
    rows = [i for i in writer.part_range(part) if ids[i] != skip]
    flat = np.array([r * CROPS + c for r in rows for c in range(CROPS)], int)
    table = np.zeros(len(rows), IMAGE)
    table["target"], table["height"], table["width"] = targets[rows], 300, 65535
    table["fingerprint"] = [2**63 + r for r in rows]
    records = writer.settings.record.format.encode(labels[torch.from_numpy(flat)])
    of_crops = boxes[flat].reshape(-1, CROPS, 4), flips[flat].reshape(-1, CROPS)
    skipped = [
        manifests.Skipped(id=skip, reason="broken")
        for i in writer.part_range(part)
        if ids[i] == skip
    ]
    writer.write(
        part, [ids[i] for i in rows], table, *of_crops, records.reshape(-1, CROPS), skipped
    )


def write_store(path: Path, ids=IDS, **options) -> LabelStore:
    with StoreWriter(path, store_settings(ids, **options), len(ids)) as writer:
        for part in writer.missing():
            write_part(writer, part, ids)
        return writer.finish()


def write_features(path: Path, vectors: np.ndarray, targets: list[int]) -> LabelStore:
    """A store of features in half precision: ``vectors`` [n, crops, d], one image a target."""
    count, crops, dim = vectors.shape
    ids = [f"{i}.jpg" for i in range(count)]
    form = manifests.Vectors(dim=dim, codec="f16")
    settings = store_settings(
        ids,
        record=None,
        vectors=form,
        crops=manifests.Crops(count=crops, distribution=CropDistribution(), seed=0, rule=CUT_RULE),
        class_names=tuple(f"class {i}" for i in range(max(targets) + 1)),
    )
    table = np.zeros(count, IMAGE)
    table["target"], table["height"], table["width"] = targets, 20, 30
    records = form.format.encode(vectors.reshape(-1, dim)).reshape(count, crops)
    boxes = np.broadcast_to([1, 2, 10, 12], (count, crops, 4))
    with StoreWriter(path, settings, count) as writer:
        for part in writer.missing():
            some = slice(writer.part_range(part).start, writer.part_range(part).stop)
            flips = np.zeros((len(ids[some]), crops), bool)
            writer.write(part, ids[some], table[some], boxes[some], flips, records[some], [])
        return writer.finish()
