"""Label files in the layout of FKD's authors, made with torch.save, and the images they are of."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from ferkd.crops import random_boxes
from ferkd.store.fkd.importing import import_fkd

CROPS = 6
FORMATS = {"zip": True, "legacy": False}


def saved(path: Path, state, container: str = "zip") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=FORMATS[container])
    return path


def as_fkd(path: str, height: int, width: int, probs: np.ndarray, k: int, dtype=np.float32):
    """[coords, flips, labels] as the authors' generator makes them, and the boxes behind."""
    boxes, flips = random_boxes([height], [width], crops=len(probs), seed=1, ids=[path])
    sides = np.array([height, width, height, width])
    coords = (boxes[0] / sides).astype(np.float32).astype(dtype)
    order = np.argsort(-probs, 1)[:, :k]
    labels = np.stack([order, np.take_along_axis(probs, order, 1)], 1).astype(dtype)
    return [coords, flips[0], labels], boxes[0]


def some_probs(crops: int, classes: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 3, (crops, classes))
    return torch.from_numpy(logits).softmax(1).numpy()


class Set:
    """Images of 3 classes with their label files under labels/train, and what is in them."""

    def __init__(self, root: Path, names=("a/0.png", "a/1.png", "b/2.png", "c/3.png")) -> None:
        self.root, self.images, self.labels = root, root / "images", root / "labels"
        self.names, self.boxes, self.flips, self.probs = list(names), {}, {}, {}
        rng = np.random.default_rng(0)
        for i, name in enumerate(names):
            path = self.images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (40 + i, 31 + 2 * i, 3), dtype=np.uint8))
            probs = some_probs(CROPS, 3, i)
            state, boxes = as_fkd(name, 40 + i, 31 + 2 * i, probs, 2)
            self.boxes[name], self.flips[name], self.probs[name] = boxes, state[1], probs
            saved(self.file(name), state)

    def file(self, name: str) -> Path:
        return self.labels / "train" / Path(name).parent / (Path(name).name.split(".")[0] + ".tar")

    def run(self, **options):
        return import_fkd(self.labels, self.images, self.root / "store", **options)
