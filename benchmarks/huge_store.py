"""A simulated store of 100 million images x 10 crops: opening, looking up, choosing, thresholds.

    OMP_NUM_THREADS=1 python benchmarks/huge_store.py --json FILE

The store has real ids and a real image table; boxes, flips and labels are holes in files (29 GB, of
which some 5 GB are on the disk), but for the labels of the images that the thresholds are found
from. Each question is asked by a process of its own: seconds, and the memory that is its own.
``choose`` is the part of rank 511 of 512 of one global batch of 512 x 256 crops, 4 an image: which
images, which of their crops, their labels and boxes. ``thresholds`` is the rule "reliable" from a
sample of the images.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import parser_of, tell

from ferkd.calibration.regions import Regions, sampled_thresholds
from ferkd.calibration.scores import SAMPLED, sample_rows
from ferkd.loading.order import ImageOrder, draw_crops
from ferkd.store import LabelStore
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.study.bench.measuring import in_a_fresh_process, machine, peak_resident, resident
from ferkd.study.bench.store import MADE_UP, made_up_settings, random_labels, write_manifest
from ferkd.system.distributed import Ranks

CHUNK = 1_000_000  # images written at a time, whose ids begin alike
DIGITS = 12  # of an id
CLASSES = 1000


def write(path: Path, images: int, crops: int) -> None:
    """The store; ids are numbers of DIGITS digits, targets follow each other."""
    path.mkdir(parents=True)
    settings = made_up_settings(crops, MADE_UP, 0)
    form = settings.labels.format
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "images.npy": (IMAGE, (images,)),
        "ids.npy": ("u1", (images * DIGITS,)),
        "flips.npy": ("u1", (images, -(-crops // 8))),
        "boxes-00000.npy": ("<u2", (images, crops, 4)),
        "labels-00000.npy": (form.dtype, (images, crops)),
    }
    maps = {
        name: np.lib.format.open_memmap(path / name, mode="w+", dtype=kind, shape=shape)
        for name, (kind, shape) in shapes.items()
    }
    table = np.zeros(CHUNK, IMAGE)
    table["target"] = np.arange(CHUNK) % CLASSES
    table["height"], table["width"] = 375, 500
    ends = np.arange(1, CHUNK + 1, dtype=np.uint64) * np.uint64(DIGITS)
    text = np.frombuffer(b"".join(b"%0*d" % (DIGITS, i) for i in range(CHUNK)), "u1")
    digits = text.reshape(CHUNK, DIGITS).copy()
    for start in range(0, images, CHUNK):
        count = min(CHUNK, images - start)
        table["id_end"] = ends + np.uint64(start * DIGITS)
        digits[:, :-6] = np.frombuffer(b"%0*d" % (DIGITS - 6, start // CHUNK), "u1")
        maps["images.npy"][start : start + count] = table[:count]
        maps["ids.npy"][start * DIGITS : (start + count) * DIGITS] = digits[:count].ravel()
    sample = sample_rows(images, crops)
    fill(maps["labels-00000.npy"], np.arange(images) if sample is None else sample, form)

    write_manifest(path, settings, {name: shape[0] for name, (_, shape) in shapes.items()})


def fill(records: np.ndarray, rows: np.ndarray, form: RecordFormat) -> None:
    """Labels of a teacher that is right as often as it says, at these rows."""
    rng, crops = np.random.default_rng(0), records.shape[1]
    for some in np.array_split(rows, max(1, len(rows) * crops // (1 << 16))):
        target = np.repeat(some % CLASSES, crops)
        labels = random_labels(len(target), rng)
        right = rng.random(len(target)) < labels.log_probs[:, 0].exp().numpy()
        moved = (target + ~right) - labels.classes[:, 0].numpy()  # else to the class beside it
        classes = (labels.classes + torch.from_numpy(moved)[:, None]) % CLASSES
        true = torch.where(torch.from_numpy(right), labels.log_probs[:, 0], labels.log_probs[:, 4])
        given = replace(
            labels, classes=classes, true_log_prob=true - torch.from_numpy(~right).float()
        )
        records[some] = form.encode(given).reshape(len(some), crops)


def measured(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an action tells, its seconds, and the growth of this process's memory."""
    before, begun = resident(), time.perf_counter()
    told = action()
    seconds, after = time.perf_counter() - begun, resident()
    grown = {f"{key}_mb": (after[key] - before[key]) / 1e6 for key in after if before}
    return {"seconds": seconds, **grown, "peak_mb": peak_resident() / 1e6, **told}


def opening(path: str) -> dict[str, Any]:
    def act() -> dict[str, Any]:
        store = LabelStore(path)
        store.map_all()
        return {"first_id": store.ids[0]}

    return measured(act)


def lookup(path: str) -> dict[str, Any]:
    store = LabelStore(path)
    store.map_all()
    wanted = f"{len(store) * 3 // 4:0{DIGITS}d}"
    found = measured(lambda: {"row": store.ids.find(wanted)})
    assert found["row"] == int(wanted)
    return found


def choose(path: str, rank: int, world: int, share: int, m: int) -> dict[str, Any]:
    store = LabelStore(path)
    store.map_all()

    def act() -> dict[str, Any]:
        images = world * share // m
        mine = Ranks(rank, world).part(images)
        rows, visits = ImageOrder(len(store), 0).at(1000 * images + mine.start, share // m)
        usable = np.ones((len(rows), store.crops_per_image), bool)
        crops = draw_crops(usable, store.ids.at(rows), visits, m, 0)
        store.of_kind("labels").raw_records(rows[:, None], crops)
        store.raw_boxes(rows[:, None], crops)
        store.flips(rows[:, None], crops)
        return {"images": len(set(rows.tolist())), "crops": crops.size}

    return measured(act)


def thresholds(path: str) -> dict[str, Any]:
    store = LabelStore(path)
    rows = sample_rows(len(store), store.crops_per_image)
    rows = np.arange(len(store)) if rows is None else rows

    def act() -> dict[str, Any]:
        found, shares = sampled_thresholds(store, Regions(thresholds="reliable"), rows)
        return {"images": len(rows), "thresholds": list(found), "shares": shares}

    return measured(act)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--crops", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="for the store; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferkd-huge-", dir=options.folder) as folder:
        path = Path(folder) / "store"
        begun = time.perf_counter()
        write(path, options.images, options.crops)
        files = [file.stat() for file in path.iterdir()]
        result = {
            "command": "python benchmarks/huge_store.py"
            f" --images {options.images} --crops {options.crops}",
            "images": options.images,
            "crops_per_image": options.crops,
            "bytes": sum(file.st_size for file in files),
            "bytes_on_disk": sum(file.st_blocks * 512 for file in files),
            "seconds_to_write": time.perf_counter() - begun,
            "sampled_crops": SAMPLED,
            "open": in_a_fresh_process("huge_store:opening", str(path)),
            "lookup": in_a_fresh_process("huge_store:lookup", str(path)),
            "choose": in_a_fresh_process("huge_store:choose", str(path), 511, 512, 256, 4),
            "thresholds": in_a_fresh_process("huge_store:thresholds", str(path)),
            "machine": machine(),
        }
    tell(result, options.json)


if __name__ == "__main__":
    main()
