"""The store's version 2 beside version 1: CPU seconds of reading a batch of 256 images.

    OMP_NUM_THREADS=1 python benchmarks/store_versions.py flowers/train --json FILE

Both are built from git, version 1 from the last commit that had it (``--before``), version 2 from
``--after``, and each is run by a process of its own on the same images: 50 crops an image, top-5
of 1000 classes. They are asked in turns, each first in every other turn. The figures are CPU
seconds, so that other work on the machine counts little; a ratio is version 2 over version 1 within
a turn. Both have to show the same crops.

labels: `LabelStore.labels` of 4 random crops of each of 256 images. store: all that a loader asks
of the store for such a batch (crops chosen, boxes, flips, labels). loader: the whole batch, 64 px.
images: a batch as large of fresh crops, which no store has a part in: what else has changed since.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting import parser_of, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BEFORE = "9a6674d84beeea5b68097cef72a0822cc1478d38"
ROOT = Path(__file__).parents[1]
IMAGES, CROPS, SIDE = 256, 4, 64
ROUNDS = {"labels": 40, "store": 20, "loader": 1, "images": 1}  # batches in a turn


def work(images: str, folder: str) -> None:
    """Of one version: write a store, then answer each line, a measure's name, with CPU seconds a
    batch and a number that stands for the boxes shown."""
    import numpy as np
    import torch

    from ferkd.images import open_images
    from ferkd.loading.crop_sources import FreshCrops, StoredCrops
    from ferkd.loading.loader import Loader, SoftLabelLoader
    from ferkd.study.bench.made_up import write_labels

    torch.set_num_threads(1)
    source = open_images(images, targets=False)
    store = write_labels(Path(folder) / "store", source, 50, num_classes=1000)
    shown = StoredCrops(source, store)
    size = {"batch_size": IMAGES * CROPS, "crops_per_image": CROPS, "image_size": SIDE}
    loaders = {
        "loader": SoftLabelLoader(source, store, **size),
        "images": Loader(source, FreshCrops(source), **size),
    }
    sizes = np.stack([store.images["height"], store.images["width"]], 1).astype(np.int64)
    print("ready", flush=True)
    for turn, line in enumerate(sys.stdin):
        what = line.strip()
        rng = np.random.default_rng(turn)
        batches = [
            (rng.choice(len(store), IMAGES, replace=False), rng.integers(0, 50, (IMAGES, CROPS)))
            for _ in range(ROUNDS[what])
        ]
        boxes = np.zeros(0)
        begun = time.process_time()
        for rows, crops in batches:
            if what == "labels":
                store.labels(rows[:, None], crops)
            elif what == "store":
                chosen = shown.choose(rows, rows % 7, CROPS)
                placed = shown.boxes(chosen, sizes[rows])
                shown.labels(chosen, placed, sizes[rows])
                boxes = placed.boxes
            else:
                for batch in loaders[what].batches(turn, turn + 1):
                    boxes = batch.crops.numpy()
        seconds = time.process_time() - begun
        print(seconds / len(batches), int(boxes.sum()), flush=True)


def commit_of(name: str) -> str:
    """The full number of the commit that git calls ``name``."""
    command = ["git", "-C", str(ROOT), "rev-parse", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def built(commit: str) -> Iterator[Path]:
    """The source of a commit, in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="ferkd-version-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", tree, commit], check=True)
        try:
            yield tree / "src"
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


@contextmanager
def worker(source: Path, images: str, folder: Path) -> Iterator[Callable[[str], tuple[float, int]]]:
    """A process of one version, to be asked for measures."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, images, "--work", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin and process.stdout
        sent, answers = process.stdin, process.stdout
        assert answers.readline() == "ready\n", "a version did not start; see above"

        def ask(what: str) -> tuple[float, int]:
            sent.write(f"{what}\n")
            sent.flush()
            seconds, boxes = answers.readline().split()
            return float(seconds), int(boxes)

        yield ask
        sent.close()


def compare(images: str, before: str, after: str, repeats: int) -> dict[str, Any]:
    """By measure: microseconds of each version, medians over the turns, and of their ratios."""
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="ferkd-stores-") as stores,
        built(before) as old,
        built(after) as new,
        worker(old, images, Path(stores) / "1") as first,
        worker(new, images, Path(stores) / "2") as second,
    ):
        for what in ROUNDS:
            seconds: list[tuple[float, float]] = []
            for turn in range(repeats + 2):  # two to warm up
                asked = [first, second] if turn % 2 else [second, first]
                answers = {ask: ask(what) for ask in asked}
                assert answers[first][1] == answers[second][1], "the versions show other crops"
                if turn >= 2:
                    seconds.append((answers[first][0], answers[second][0]))
            ratios = [two / one for one, two in seconds]
            low, _, high = statistics.quantiles(ratios, n=4)
            found[what] = {
                "version_1_us": statistics.median(one for one, _ in seconds) * 1e6,
                "version_2_us": statistics.median(two for _, two in seconds) * 1e6,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [low, high],
            }
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("images")
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--after", default="HEAD")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.images, options.work)
        return
    from ferkd.study.bench.measuring import machine

    after = commit_of(options.after)
    result = {
        "command": f"python benchmarks/store_versions.py IMAGES --repeats {options.repeats}",
        "read": f"{CROPS} of 50 crops of each of {IMAGES} images, top-5 of 1000 classes",
        "before": options.before,
        "after": after,
        "repeats": options.repeats,
        "measures": compare(options.images, options.before, after, options.repeats),
        "machine": machine(),
    }
    tell(result, options.json)


if __name__ == "__main__":
    main()
