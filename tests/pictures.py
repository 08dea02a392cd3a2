"""Pictures of noise, for the tests of what reads a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def write_noise(root: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """Write a picture of noise for each path in ``root``, of (height, width) pixels; the root."""
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(path.suffix, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        assert ok
        path.write_bytes(data.tobytes())
    return root
