"""Images, and a store of one signal."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from signals import OPTIONS, teacher

from ferkd.labelling.run import label


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(5):
        path = tmp_path / f"images/c/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 33, 3), dtype=np.uint8)
        cv2.imwrite(str(path), pixels)
    return tmp_path / "images"


@pytest.fixture
def store(images, tmp_path) -> Path:
    label(images, teacher(), tmp_path / "s", crops=3, top_k=2, **OPTIONS)
    return tmp_path / "s"
