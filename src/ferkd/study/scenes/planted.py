"""Scenes whose truth is known: wrong labels and background crops planted on purpose.

A planted data set::

    OUT/train/CLASS/ID.jpg    OUT/val/CLASS/ID.jpg    OUT/truth.json

A stated share of the training images lies in another class's folder; ``val`` is clean, and the
same for every share. ``truth.json`` has, for each image of either split, the class that it shows,
the class that it lies under and the tight box of the object. The smaller the objects, the more of
the crops miss them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ferkd.calibration.regions import scores_of
from ferkd.crops import object_share
from ferkd.store import LabelStore
from ferkd.study.scenes.drawn import (
    BOXES_FILE,
    CLASS_NAMES,
    Box,
    SceneSettings,
    write_scenes,
)
from ferkd.system.errors import InputError
from ferkd.system.results import Result
from ferkd.system.statistics import auroc

TRUTH_FILE = "truth.json"
HOLDS = 0.5  # of the object's area: a crop with that much holds it
ObjectScale = Literal["small", "normal"]
OBJECT_SIDES: dict[str, tuple[float, float]] = {"small": (0.2, 0.3), "normal": (0.35, 0.55)}

_NOISE_STREAM = 3  # of the seed; 0 to 2 are those of the scenes


@dataclass(frozen=True)
class Truth:
    """What one image shows, the class that it lies under, and where its object is."""

    shown: str
    given: str
    box: Box


@dataclass(frozen=True, eq=False)
class Planted(Result):
    """What was planted, and into which folder."""

    images: int
    val_images: int
    label_noise: float
    object_scale: ObjectScale
    seed: int
    wrong_labels: int
    out: str


def plant(
    out: str | Path,
    *,
    images: int = 4000,
    val_images: int = 1000,
    label_noise: float = 0.0,
    object_scale: ObjectScale = "normal",
    seed: int = 0,
    overwrite: bool = False,
) -> Planted:
    """Write planted scenes into the folder ``out``; returns their figures.

    ``images`` and ``val_images`` are multiples of the 10 classes. round(label_noise * images)
    training images, drawn from all of them, lie in the folder of another class, any of the others
    alike; a larger share of the same seed holds those of a smaller one, moved to the same places.
    Pictures depend on the seed and the scale alone. Raises InputError; nothing is left at ``out``
    by an interrupted run, and only a folder of planted scenes and nothing else is ever replaced.
    """
    out = Path(out)
    classes = len(CLASS_NAMES)
    for name, count in (("images", images), ("val-images", val_images)):
        if count < classes or count % classes:
            raise InputError(
                f"--{name} {count}: give a positive multiple of {classes}, the classes"
            )
    if not 0 <= label_noise <= 0.9:
        raise InputError(
            f"--label-noise {label_noise:g}: give a share from 0 to 0.9, at which labels are as "
            "good as drawn by lot"
        )
    if object_scale not in OBJECT_SIDES:
        raise InputError(f"--object-scale {object_scale!r}: it must be small or normal")
    if seed < 0:
        raise InputError(f"--seed {seed}: give a number of at least 0")
    _claim(out, overwrite)
    settings = SceneSettings(
        train_per_class=images // classes,
        val_per_class=val_images // classes,
        object_side=OBJECT_SIDES[object_scale],
        seed=seed,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as holder:
        unfinished = Path(holder) / "scenes"
        write_scenes(unfinished, settings)
        truth = {"val": _clean(unfinished / "val"), "train": _clean(unfinished / "train")}
        truth["train"] = _move(unfinished / "train", truth["train"], label_noise, seed)
        planted = Planted(
            images=images,
            val_images=val_images,
            label_noise=label_noise,
            object_scale=object_scale,
            seed=seed,
            wrong_labels=sum(t.shown != t.given for t in truth["train"].values()),
            out=str(out),
        )
        figures = {key: value for key, value in planted.items() if key != "out"}
        _write(unfinished, figures, truth)
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    return planted


def read_truth(path: str | Path, split: str = "train") -> dict[str, Truth]:
    """The truth of one split by image id. Raises InputError for a file that ferkd did not write."""
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[split]
        truth = {}
        for key, entry in entries.items():
            top, left, height, width = (int(value) for value in entry["box"])
            box = (top, left, height, width)
            truth[str(key)] = Truth(str(entry["shown"]), str(entry["given"]), box)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as a truth file ({error!r}); give the {TRUTH_FILE} that "
            "ferkd scenes wrote"
        ) from error
    return truth


def against_truth(store: LabelStore, truth: dict[str, Truth]) -> dict[str, Any]:
    """How well scores of single crops find what was planted, as AUROC; all crops count alike.

    ``holds_object``: at least half of the object lies in the crop; ``wrong_label``: the image lies
    under another class than it shows. Each has the AUROC of ``max_prob``, ``true_prob`` and
    ``1 - true_prob`` (the class the image lies under); None where all crops are of one kind.
    Raises InputError for a store of other images.
    """
    missing = [key for key in store.ids if key not in truth]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(store)} images of {store.path} are not in the truth file "
            f"(first: {missing[0]}); give the file of the scenes that were labelled"
        )
    entries = [truth[key] for key in store.ids]
    boxes = store.boxes(np.arange(len(store))[:, None], np.arange(store.crops_per_image))
    held = object_share(boxes, np.array([entry.box for entry in entries])[:, None]) >= HOLDS
    wrong = np.array([entry.shown != entry.given for entry in entries])
    planted = {"holds_object": held, "wrong_label": np.broadcast_to(wrong[:, None], held.shape)}
    known = store.targets >= 0
    largest, _ = scores_of(store, "max_prob")
    true, _ = scores_of(store, "true_prob")
    found: dict[str, Any] = {"crops": held.size}
    for name, positives in planted.items():
        found[name] = {
            "share": float(positives.mean()),
            "max_prob": _area(largest, positives),
            "true_prob": _area(true[known], positives[known]),
            "1 - true_prob": _area(1 - true[known], positives[known]),
        }
    return found


def _area(scores: Any, positives: Any) -> float | None:
    area = auroc(scores, positives)
    return None if np.isnan(area) else area


def _claim(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out.is_dir() and (out / TRUTH_FILE).is_file()):
        raise InputError(f"{out} exists and holds no planted scenes; give another --out")
    foreign = sorted({file.name for file in out.iterdir()} - {"train", "val", TRUTH_FILE})
    if foreign:
        raise InputError(
            f"{out} holds more than planted scenes ({foreign[0]}), which would be deleted; move it "
            "away, or give another --out"
        )
    for split in ("train", "val"):
        read_truth(out / TRUTH_FILE, split)  # a file of that name may be anybody's
    if not overwrite:
        raise InputError(
            f"{out} holds planted scenes already; replace them with --overwrite, or give another "
            "--out"
        )


def _clean(split: Path) -> dict[str, Truth]:
    """The truth of a split as it was written, whose file of boxes it replaces."""
    file = split / BOXES_FILE
    boxes = {key: entry["box"] for key, entry in json.loads(file.read_text()).items()}
    file.unlink()
    classes = {key: key.partition("/")[0] for key in boxes}
    return {key: Truth(classes[key], classes[key], tuple(box)) for key, box in boxes.items()}


def _move(split: Path, truth: dict[str, Truth], noise: float, seed: int) -> dict[str, Truth]:
    """Move a share of the images to other classes' folders; the truth of all by their new ids."""
    rng = np.random.default_rng([seed, _NOISE_STREAM])
    order = rng.permutation(len(truth))
    steps = rng.integers(1, len(CLASS_NAMES), len(truth))  # to any of the other classes
    moved = set(order[: round(noise * len(truth))].tolist())
    result = {}
    for number, (key, entry) in enumerate(truth.items()):
        if number not in moved:
            result[key] = entry
            continue
        at = (CLASS_NAMES.index(entry.shown) + int(steps[number])) % len(CLASS_NAMES)
        given = CLASS_NAMES[at]
        # The number in its own class alone could be taken there.
        new = f"{given}/{entry.shown}-{key.partition('/')[2]}"
        (split / key).rename(split / new)
        result[new] = Truth(entry.shown, given, entry.box)
    return result


def _write(folder: Path, figures: dict[str, Any], truth: dict[str, dict[str, Truth]]) -> None:
    parts = [f'"settings": {json.dumps(figures)}']
    for split, entries in truth.items():
        lines = (f"{json.dumps(key)}: {json.dumps(vars(e))}" for key, e in sorted(entries.items()))
        parts.append(f'"{split}": {{\n' + ",\n".join(lines) + "\n}")
    (folder / TRUTH_FILE).write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
