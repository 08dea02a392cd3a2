"""Label stores with made-up labels of real images, for benchmarks of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ferkd import __version__
from ferkd.crops import CUT_RULE, CropDistribution, random_boxes
from ferkd.images import DECODER, ImageSource, decode, fingerprint
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.store.writer import StoreWriter, listing

_PART = 64  # images written at a time
_SURENESS = 14.0  # the largest logit of the class shown; the others' have deviation 2


def random_labels(
    shown: torch.Tensor, num_classes: int, rng: np.random.Generator, *, k: int = 5, known: bool
) -> SoftLabels:
    """Top-k labels of crops that show the classes ``shown`` int64 [B], from hardly sure to sure.

    ``known``: whether the classes shown are the ground truth, whose probability is then recorded.
    """
    logits = torch.from_numpy(rng.normal(0, 2, (len(shown), num_classes))).float()
    sureness = torch.from_numpy(rng.uniform(0, _SURENESS, len(shown))).float()
    logits.scatter_(1, shown[:, None], sureness[:, None])
    return SoftLabels.from_logits(logits, shown if known else None, k)


def write_labels(
    path: Path,
    source: ImageSource,
    crops: int,
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> LabelStore:
    """Random top-5 labels of ``crops`` random crops of each image, in a store that loaders accept.

    The boxes are of the distribution that ferkd labels with. ``num_classes`` is the number of
    classes that the labels are over where ``source`` was opened without targets. Every image is
    decoded once.
    """
    known = bool(source.class_names)
    classes = len(source.class_names) if known else num_classes or 1000
    record = RecordFormat.choose(5, classes)
    settings = manifests.Settings(
        record=manifests.Record(**vars(record)),
        crops=manifests.Crops(
            count=crops, distribution=CropDistribution(), seed=seed, rule=CUT_RULE
        ),
        images=manifests.Images(decoder=DECODER, exif=True, listing=listing(source.ids)),
        teacher={"spec": "none: random labels of ferkd bench", "num_classes": classes},
        class_names=source.class_names or tuple(f"class {c}" for c in range(classes)),
        targets=known,
        part_images=_PART,
        software=f"ferkd {__version__}, torch {torch.__version__}",
    )
    rng = np.random.default_rng(seed)
    with StoreWriter(path, settings, len(source)) as writer:
        for part in writer.missing():
            places = writer.part_range(part)
            ids = [source.ids[place] for place in places]
            table = np.zeros(len(places), IMAGE)
            for row, place in enumerate(places):
                data = source.read(place)
                height, width = decode(data).shape[:2]
                target = int(source.targets[place])
                table[row] = (0, fingerprint(data), target, height, width)
            boxes, flips = random_boxes(
                table["height"], table["width"], crops=crops, seed=seed, ids=ids
            )
            shown = np.repeat(table["target"].astype(np.int64), crops)
            if not known:
                shown = rng.integers(0, classes, len(shown))
            labels = random_labels(torch.from_numpy(shown), classes, rng, known=known)
            records = record.encode(labels)
            writer.write(part, ids, table, boxes, flips, records.reshape(-1, crops), [])
        return writer.finish()
