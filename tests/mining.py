"""Memory and time of finding thresholds in a large store: ``python tests/mining.py --images N``.

The store is made up, 1000 classes and 50 crops an image, and is deleted at the end. What is
measured is memory of the process's own, beyond what it holds before; pages of the mapped store,
which the system may take back, are not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferkd.calibration.regions import Regions, mine
from ferkd.store import LabelStore
from ferkd.study.bench.made_up import random_labels
from ferkd.study.bench.store import write_sparse

CROPS, CLASSES, _IMAGES_OF_A_CLASS = 50, 1000, 1300


def write_large(path: Path, images: int) -> LabelStore:
    """A store of ``images`` images, 1300 a class, of a teacher from hardly sure to sure."""
    write_sparse(path, images, CROPS)
    record = LabelStore(path).record
    rng = np.random.default_rng(0)
    count = _IMAGES_OF_A_CLASS * CROPS
    parts = []
    for part in torch.zeros(count, dtype=torch.long).split(4096):
        parts.append(random_labels(part, CLASSES, rng, known=True))
    names = [field.name for field in dataclasses.fields(parts[0])]
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in names
        if isinstance(getattr(parts[0], name), torch.Tensor)
    }
    labels = dataclasses.replace(parts[0], **joined)
    filled = np.lib.format.open_memmap(path / "labels-00000.npy", mode="r+")
    for start in range(0, images, _IMAGES_OF_A_CLASS):
        turned = (labels.classes + start // _IMAGES_OF_A_CLASS) % CLASSES
        block = record.encode(dataclasses.replace(labels, classes=turned))
        rows = min(_IMAGES_OF_A_CLASS, images - start)
        filled[start : start + rows] = block.reshape(-1, CROPS)[:rows]
    filled.flush()
    return LabelStore(path)


def measured(work: Callable[[], Any]) -> tuple[Any, int, float]:
    """What ``work`` returns, by how many bytes this process's own memory grew at most, seconds."""
    before, peak, done = _own(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - begun
        done.set()
        watcher.join()
    return result, peak - before, seconds


def _own() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("RssAnon")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--thresholds", default="reliable")
    parser.add_argument("--calibration", default="steps")
    parser.add_argument("--folder", help="where the store is made for the time")
    parser.add_argument("--store", help="measure on this one")
    given = parser.parse_args()
    if given.store is None:  # writing leaves freed memory behind: measure in a fresh process
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write_large(Path(folder) / "store", given.images)
            command = [sys.executable, __file__, *sys.argv[1:], "--store", f"{folder}/store"]
            raise SystemExit(subprocess.run(command, check=False).returncode)
    store = LabelStore(given.store)
    store.decode(store.records([0], [0]), np.array([0]))  # what is loaded at the first use
    settings = Regions(thresholds=given.thresholds, calibration=given.calibration)
    mining, grown, seconds = measured(lambda: mine(store, settings))
    crops = len(store) * store.crops_per_image
    figures = {
        "crops": crops,
        "thresholds": list(mining.thresholds),
        "regions": mining.shares,
        "peak_megabytes": round(grown / 1e6, 1),
        "bytes_per_crop": round(grown / crops, 2),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
