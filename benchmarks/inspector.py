"""How large the inspector's page is, what writing it takes, and how soon a browser shows it.

``python benchmarks/inspector.py PHOTOGRAPHS`` prints one JSON object. The labels are made up: top-5
of 1000 classes. The images are the photographs of the folder, over and over under other names, so
that the pictures in the page have the size of real ones.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferkd import __version__
from ferkd.crops import CUT_RULE, CropDistribution, random_boxes
from ferkd.images import DECODER, ImageSource, decode, fingerprint, open_images
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.store.writer import StoreWriter, listing
from ferkd.study.inspector.page import prepare, write_page
from ferkd.study.inspector.server import Server

SIZES = ((3_000, 24, 1000), (50_000, 50, 1000))  # images, crops of each, classes
TOP = 5
MOVES = """async () => {
    const scalpel = document.querySelector("[data-scalpel=M]"), times = [];
    for (let i = 0; i < 40; i++) {
        const begun = performance.now();
        scalpel.dispatchEvent(new KeyboardEvent("keydown", { key: "PageUp" }));
        await new Promise(requestAnimationFrame);
        scalpel.getBoundingClientRect();
        times.push(performance.now() - begun);
    }
    return times;
}"""


class Repeated:
    """``count`` images of ``classes`` classes that show the photographs of ``source`` in turn."""

    def __init__(self, source: ImageSource, count: int, classes: int) -> None:
        self._source, self.name = source, source.name
        self.targets = (np.arange(count) * classes // count).astype(np.int32)
        self.class_names = tuple(f"n{c:08d}" for c in range(1, classes + 1))
        self.ids = tuple(f"{self.class_names[t]}/{i:08d}.jpg" for i, t in enumerate(self.targets))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes:
        return self._source.read(index % len(self._source))


def made_up(targets: np.ndarray, classes: int, rng: np.random.Generator) -> SoftLabels:
    """Labels of crops that are the surer the likelier they are right; ``targets`` int64 [B]."""
    sureness = rng.beta(1.2, 0.6, len(targets))
    scores = -np.cumsum(rng.exponential(0.3 + 6 * sureness[:, None] ** 3, (len(targets), 6)), 1)
    log_probs = torch.from_numpy(scores).log_softmax(1).float()
    rest = float(np.log(classes - TOP))
    tail = torch.stack([rest + (log_probs[:, TOP] - rest) / t for t in TAIL_TEMPERATURES], 1)
    others = rng.integers(0, classes, len(targets))
    first = np.where(rng.random(len(targets)) < sureness, targets, others)
    numbers = first[:, None] + rng.integers(1, classes // TOP, (len(targets), 1)) * np.arange(5)
    top = log_probs[:, :TOP].contiguous()
    hit = torch.from_numpy(first == targets)
    true = torch.where(hit, top[:, 0], tail[:, 0] - rest)
    return SoftLabels(torch.from_numpy(numbers % classes), top, tail, classes, true)


def write_store(path: Path, source: Repeated, photographs: int, crops: int) -> LabelStore:
    """A store of made-up labels of ``source``, whose images are so many photographs in turn."""
    classes, rng = len(source.class_names), np.random.default_rng(0)
    settings = manifests.Settings(
        record=manifests.Record(**vars(RecordFormat.choose(TOP, classes))),
        crops=manifests.Crops(count=crops, distribution=CropDistribution(), seed=0, rule=CUT_RULE),
        images=manifests.Images(decoder=DECODER, exif=True, listing=listing(source.ids)),
        teacher={"spec": "none: made-up labels", "num_classes": classes},
        class_names=source.class_names,
        targets=True,
        part_images=1000,
        software=f"ferkd {__version__}",
    )
    known = np.zeros(photographs, IMAGE)
    for i in range(photographs):
        data = source.read(i)
        known[i] = (0, fingerprint(data), -1, *decode(data).shape[:2])
    with StoreWriter(path, settings, len(source)) as writer:
        for part in writer.missing():
            places = np.array(writer.part_range(part))
            ids, table = [source.ids[i] for i in places], known[places % photographs].copy()
            table["target"] = source.targets[places]
            boxes, flips = random_boxes(
                table["height"], table["width"], crops=crops, seed=0, ids=ids
            )
            targets = np.repeat(table["target"].astype(np.int64), crops)
            records = settings.labels.format.encode(made_up(targets, classes, rng))
            writer.write(part, ids, table, boxes, flips, records.reshape(-1, crops), [])
        return writer.finish()


def measure(photographs: Path, images: int, crops: int, classes: int) -> dict[str, Any]:
    """One row of the table; times are of this process (writing) and of the clock (opening)."""
    source = open_images(photographs)
    few = min(len(source), 300)  # enough for the 120 pictures of a page
    with tempfile.TemporaryDirectory(prefix="ferkd-inspector-") as folder:
        repeated = Repeated(_First(source, few), images, classes)
        store = write_store(Path(folder) / "labels", repeated, few, crops)
        page, begun = Path(folder) / "page.html", time.process_time()
        inspector = prepare(store, repeated)
        counted = time.process_time()
        write_page(inspector, page)
        written = time.process_time()
        with Server(inspector, port=0) as server:
            data = len(server.data)
        return {
            **{"images": images, "crops_per_image": crops, "classes": classes},
            "page_bytes": page.stat().st_size,
            "served_data_bytes": data,
            "count_cpu_seconds": round(counted - begun, 1),
            "write_cpu_seconds": round(written - counted, 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **_opened(page),
        }


class _First:
    """The first images of a source."""

    def __init__(self, source: ImageSource, count: int) -> None:
        self.name, self._source, self._count = source.name, source, count

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> bytes:
        return self._source.read(index)


def _opened(page: Path) -> dict[str, float]:
    """Seconds from asking for the page until all of it stands, and milliseconds from a key's press
    until all figures have followed (the median of 40); nothing where there is no Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if (path := shutil.which("chromium")) is None:
        return {}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto("about:blank")
        begun = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready=yes]")
        seconds = time.perf_counter() - begun
        moves = tab.evaluate(MOVES)
        browser.close()
    return {"opened_seconds": round(seconds, 2), "move_ms": round(float(np.median(moves)), 1)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    command = f"python benchmarks/inspector.py {folder}"
    results = [measure(folder, *size) for size in SIZES]
    print(json.dumps({"command": command, "results": results}, indent=1))
