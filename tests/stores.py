"""Small label stores of random labels, for the tests of what reads them; what a store holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferkd.crops import CUT_RULE, CropDistribution, random_boxes
from ferkd.labelling.maps import grid_boxes
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat, Summary
from ferkd.store.writer import StoreWriter, listing

IDS = ("a/1.jpg", "a/my.photo.v2.jpg", "b/x\ny.png", "é/漢.jpg", "é/漢字.jpg")


def write_store(
    path: Path,
    *,
    k: int | None = 3,
    classes: int = 6,
    values: str = "auto",
    tail: Summary = "tempered",
    crops: int = 4,
    ids: tuple[str, ...] = IDS,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    grid: manifests.Crops | None = None,
    wrong: str = "",
    signal: str | None = None,
    **settings: Any,
) -> LabelStore:
    """A store of ``ids`` with random logits, every third image without a ground truth.

    ``grid`` makes label maps of it; ``wrong`` "box" or "flip" spoils that of image 1, crop 2.
    """
    rng = np.random.default_rng(seed)
    form = RecordFormat.choose(k, classes, values, tail)
    described = {
        "record": manifests.Record(**vars(form)),
        "crops": grid
        or manifests.Crops(count=crops, distribution=CropDistribution(), seed=seed, rule=CUT_RULE),
        "images": manifests.Images(decoder="none", exif=True, listing=listing(ids)),
        "teacher": {"spec": "random"},
        "class_names": tuple(f"class é{i}" for i in range(classes)),
        "targets": True,
        "part_images": 2,
        "software": "test",
    } | settings
    table = np.zeros(len(ids), IMAGE)
    table["fingerprint"] = rng.integers(0, 2**63, len(ids))
    table["target"] = rng.integers(0, classes, len(ids))
    table["target"][::3] = -1
    table["height"], table["width"] = 300, 65_535
    boxes, flips = random_boxes(table["height"], table["width"], crops=crops, seed=seed, ids=ids)
    if grid is not None:
        boxes = grid_boxes(table["height"], table["width"], grid.rows, grid.columns)
        flips = np.zeros(boxes.shape[:2], bool)
    if wrong == "box":
        boxes[1, 2, 3] -= 1
    elif wrong == "flip":
        flips[1, 2] = True
    logits = torch.from_numpy(rng.normal(0, 3, (len(ids) * crops, classes)))
    targets = torch.from_numpy(np.repeat(table["target"], crops).astype(np.int64))
    labels = SoftLabels.from_logits(logits, targets, k)
    records = form.encode(labels).reshape(-1, crops)
    wanted = manifests.Settings(**described)
    with StoreWriter(
        path, wanted, len(ids), signal=signal, resume=resume, overwrite=overwrite
    ) as writer:
        for part in writer.missing():
            rows = np.array(writer.part_range(part))
            of_crops = boxes[rows], flips[rows], records[rows]
            writer.write(part, [ids[r] for r in rows], table[rows], *of_crops, [])
        return writer.finish()


def bytes_of(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def everything(store: LabelStore) -> SoftLabels:
    """What the records hold, and nothing made of it."""
    records = store.records(np.arange(len(store))[:, None], np.arange(store.crops_per_image))
    has_target = np.repeat(store.targets >= 0, store.crops_per_image)
    return store.record.decode(records.reshape(-1), has_target)


def files_of(body) -> list[dict]:
    geometry = body["geometry"]
    one = [geometry[name] for name in ("images", "ids", "flips")]
    return [*one, *geometry["boxes"], *(f for s in body["signals"].values() for f in s["files"])]


def resigned(path: Path, change) -> None:
    """Damage a store and make all its checksums right again, as a hostile or faulty writer may."""
    arrays = {p.name: np.load(p) for p in path.glob("*.npy")}
    body = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(arrays, body)
    for file in files_of(body):
        if file["name"] in arrays:
            np.save(path / file["name"], arrays[file["name"]])
            data = (path / file["name"]).read_bytes()
            file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del body["digest"]
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    body["digest"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    (path / "manifest.json").write_text(text, encoding="utf-8")
