"""How fast a label store is read beside FKD's label files, and how fast a very large one opens.

Both sides hold the same labels and are timed in turns, in one process, on warm files; figures are
medians over the turns, so that what else the machine does weighs on both alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd import __version__
from ferkd.crops import CUT_RULE, CropDistribution
from ferkd.images import open_images
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter, copy_signal
from ferkd.store.reader import IMAGE, MANIFEST
from ferkd.store.records import RecordFormat
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.store.writer import StoreWriter, listing
from ferkd.study.bench.measuring import in_a_fresh_process, machine, resident
from ferkd.system.errors import InputError

CLASSES, TOP_K = 1000, 5
FEATURES = 384
IMAGENET_IMAGES = 1_281_167
_PART = 64  # images written at a time
_ROUNDS = 20  # batches read from the store in a turn, so that it too runs with warm caches
_LOOKUPS = 1000
MADE_UP = "0" * 64  # stands for a checksum that nobody will check


def bench_store(
    *,
    images: int = 1024,
    crops: int = 500,
    batch: int = 256,
    crops_per_image: int = 4,
    repeats: int = 30,
    opened_images: int = IMAGENET_IMAGES,
    opened_crops: int = 50,
    ids_of: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time the reading of ``crops_per_image`` random crops of each of ``batch`` random images.

    ``value`` is the time that the crops' records of an image take; the baseline is ``torch.load``
    of one FKD file per image (without even taking the crops out of it). Under ``details``: the
    same with decoding to `SoftLabels`, the two sides' bytes, and a store of ``opened_images`` x
    ``opened_crops`` opened in a fresh process (0 leaves that out). ``ids_of`` names an image
    folder whose ids a store of 50 synthetic crops per image is written for, to weigh it. Works in
    a temporary folder. Raises InputError for counts out of range.
    """
    if not (1 <= batch <= images and 1 <= crops_per_image <= crops and repeats >= 1):
        raise InputError(
            f"batch {batch} of {images} images, {crops_per_image} of {crops} crops, {repeats} "
            "repeats: the first may not exceed the second, and each must be at least 1"
        )
    with tempfile.TemporaryDirectory(prefix="ferkd-bench-") as folder:
        place = Path(folder)
        ids = imagenet_ids(images)
        store = write_store(place / "store", ids, crops, seed=seed)
        files = write_fkd(place / "fkd", store)
        rng = np.random.default_rng(seed)
        reads: dict[str, tuple[Callable[[NDArray[Any], NDArray[Any]], object], int]] = {
            "labels": (lambda rows, chosen: store.labels(rows[:, None], chosen), _ROUNDS),
            "records": (lambda rows, chosen: _raw(store, rows[:, None], chosen), _ROUNDS),
            "torch.load": (lambda rows, chosen: [torch.load(files[row]) for row in rows], 1),
        }
        times: dict[str, list[float]] = {name: [] for name in reads}
        for turn in range(repeats + 1):  # the first is not counted
            for name, (read, rounds) in reads.items():
                rows = [rng.choice(images, batch, replace=False) for _ in range(rounds)]
                chosen = rng.integers(0, crops, (rounds, batch, crops_per_image))
                begun = time.perf_counter()
                for some, which in zip(rows, chosen, strict=True):
                    read(some, which)
                seconds = time.perf_counter() - begun
                if turn:
                    times[name].append(seconds / (rounds * batch) * 1e6)
        median = {name: statistics.median(values) for name, values in times.items()}
        details: dict[str, Any] = {
            "images": images,
            "crops_per_image": crops,
            "read": f"{crops_per_image} crops of each of {batch} images, top-{TOP_K}",
            "repeats": repeats,
            "quartiles": {n: _quartiles(values) for n, values in times.items()},
            "decoded_to_soft_labels": {
                "value": median["labels"],
                "ratio": median["torch.load"] / median["labels"],
            },
            "bytes_per_crop": {
                "store": store.bytes_on_disk / (images * crops),
                "fkd": sum(f.stat().st_size for f in files) / (images * crops),
            },
        }
        if opened_images:
            write_sparse(place / "large", opened_images, opened_crops)
            details["opening"] = in_a_fresh_process(
                "ferkd.study.bench.store:probe", str(place / "large")
            )
        if ids_of is not None:
            listed = list(open_images(ids_of).ids)
            weighed = write_store(place / "weighed", listed, 50, seed=seed)
            details["weighed"] = {
                "images": len(weighed),
                "crops_per_image": 50,
                "record_bytes": weighed.record.dtype.itemsize,
                "bytes_per_crop": weighed.bytes_on_disk / (len(weighed) * 50),
                **weigh_signals(weighed, seed),
            }
    return {
        "benchmark": "store",
        "value": median["records"],
        "unit": "microseconds per image",
        "baselines": {"torch.load": median["torch.load"]},
        "ratios": {"torch.load": median["torch.load"] / median["records"]},
        "details": details,
        "machine": machine(),
    }


def imagenet_ids(count: int) -> list[str]:
    """Sorted ids of ImageNet's form and length, 1300 to a class."""
    pairs = (divmod(i, 1300) for i in range(count))
    return [f"n{c + 1:08d}/n{c + 1:08d}_{n:05d}.JPEG" for c, n in pairs]


def write_store(path: Path, ids: Sequence[str], crops: int, *, seed: int = 0) -> LabelStore:
    """Write a store of synthetic top-5 labels over 1000 classes for the images ``ids``."""
    rng = np.random.default_rng(seed)
    settings = made_up_settings(crops, listing(ids), seed)
    record = settings.labels.format
    with StoreWriter(path, settings, len(ids)) as writer:
        for part in writer.missing():
            places = writer.part_range(part)
            count = len(places) * crops
            labels = random_labels(count, rng)
            boxes = rng.integers(0, 498, (count, 4))
            boxes = (boxes // 2).reshape(-1, crops, 4) + 1  # inside images of 500 pixels
            flips, records = rng.random((len(places), crops)) < 0.5, record.encode(labels)
            table = np.zeros(len(places), IMAGE)
            table["target"], table["height"], table["width"] = 0, 500, 500
            table["fingerprint"] = rng.integers(0, 1 << 63, len(places))
            part_ids = [ids[i] for i in places]
            writer.write(part, part_ids, table, boxes, flips, records.reshape(-1, crops), [])
        return writer.finish()


def _raw(store: LabelStore, rows: NDArray[Any], crops: NDArray[Any]) -> object:
    """All that is stored of some crops, as a loader reads it: records, boxes and flips."""
    return store.records(rows, crops), store.boxes(rows, crops), store.flips(rows, crops)


def weigh_signals(store: LabelStore, seed: int) -> dict[str, float]:
    """Bytes a crop with a second teacher's labels, and of the geometry with 384-d features in i8.

    Both are added to ``store``; the features are random numbers, for their bytes do
    not depend on what they are.
    """
    crops, rng = store.crops_per_image, np.random.default_rng(seed + 1)
    whole = len(store) * crops
    copied = copy_signal(store, "labels", store.folder, "second")
    two = copied.bytes_on_disk / whole
    vectors = manifests.Vectors(dim=FEATURES, codec="i8")
    settings = copied.settings_of("labels").model_copy(update={"record": None, "vectors": vectors})
    with SignalWriter(store.folder, settings, len(store), signal="features") as writer:
        for part in writer.missing():
            rows = np.arange(len(store))[slice(*_ends(writer.part_range(part)))]
            where = rows[:, None], np.arange(crops)
            made = vectors.format.encode(rng.normal(size=(len(rows) * crops, FEATURES)))
            of_crops = store.boxes(*where), store.flips(*where), made.reshape(-1, crops)
            ids = [store.ids[int(row)] for row in rows]
            writer.write(part, ids, store.images[rows], *of_crops, [])
        with_features = writer.finish()
    alone = with_features.manifest.only(["features"])
    held = len(manifests.to_bytes(alone)) + sum(file.size for file in alone.files)
    return {"two_teachers_bytes_per_crop": two, "features_bytes_per_crop": held / whole}


def _ends(places: range) -> tuple[int, int]:
    return places.start, places.stop


def write_fkd(path: Path, store: LabelStore) -> list[Path]:
    """The store's labels as FKD's files: one per image, ``torch.save([coords, flip, labels])``.

    coords float32 [N, 4] relative to the image, flip bool [N], labels float32 [N, 2, k] with the
    class numbers and the probabilities. Returns the files in the order of the images.
    """
    path.mkdir()
    every = np.arange(store.crops_per_image)
    files = []
    for row in range(len(store)):
        labels = store.labels(row, every)
        sides = store.images[["height", "width"]][row]
        scale = np.array([sides["height"], sides["width"]] * 2, np.float32)
        coords = torch.from_numpy(store.boxes(row, every) / scale).float()
        flip = torch.from_numpy(store.flips(row, every))
        pairs = torch.stack([labels.classes.float(), labels.log_probs.exp()], 1)
        files.append(path / f"{row:07d}.tar")
        torch.save([coords, flip, pairs], files[-1])
    return files


def write_sparse(path: Path, images: int, crops: int) -> None:
    """A store of ``images`` x ``crops`` with a real manifest, ids and image table, whose records
    are a hole in the file where the file system has them (their checksums are made up)."""
    path.mkdir(parents=True)
    text = "".join(imagenet_ids(images)).encode()
    table = np.zeros(images, IMAGE)
    table["id_end"] = np.arange(1, images + 1) * (len(text) // images)  # all of one length
    table["target"], table["height"], table["width"] = np.arange(images) // 1300, 375, 500
    np.save(path / "images.npy", table)
    np.save(path / "ids.npy", np.frombuffer(text, "u1"))
    settings = made_up_settings(crops, MADE_UP, 0)
    dtype = settings.labels.format.dtype
    np.save(path / "flips.npy", np.zeros((images, -(-crops // 8)), "u1"))
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "boxes-00000.npy": ("<u2", (images, crops, 4))
    }
    shapes["labels-00000.npy"] = (dtype, (images, crops))
    for name, (kind, shape) in shapes.items():
        np.lib.format.open_memmap(path / name, mode="w+", dtype=kind, shape=shape)

    rows = {name: shape[0] for name, (_, shape) in shapes.items()}
    rows |= {"images.npy": images, "ids.npy": len(text), "flips.npy": images}
    write_manifest(path, settings, rows)


def write_manifest(path: Path, settings: manifests.Settings, rows: Mapping[str, int]) -> None:
    """A manifest for files, one of each kind, of ``rows`` rows by name; checksums are made up."""

    def described(name: str) -> manifests.File:
        size = (path / name).stat().st_size
        return manifests.File(name=name, rows=rows[name], size=size, sha256=MADE_UP)

    geometry = manifests.Geometry(
        settings=settings.geometry,
        **{name: described(f"{name}.npy") for name in ("images", "ids", "flips")},
        boxes=(described("boxes-00000.npy"),),
        skipped=(),
    )
    signal = manifests.Signal(
        settings=settings.signal(settings.class_names), files=(described("labels-00000.npy"),)
    )
    manifest = manifests.Manifest(geometry=geometry, signals={"labels": signal})
    (path / MANIFEST).write_bytes(manifests.to_bytes(manifest))


def probe(path: str, batch: int = 256, crops_per_image: int = 4) -> dict[str, Any]:
    """Open a store, read a batch, find images by id: seconds, and this process's growth in bytes.

    Opening counts until every file is mapped and the first id is read. The first batch meets
    pages that the system has not mapped yet, the second finds them there.
    ``private`` is memory of the process's own, ``mapped`` are pages of files it has looked at,
    which the system may take back; None where the system does not tell.
    """
    before = resident()
    begun = time.perf_counter()
    store = LabelStore(path)
    store.map_all()
    first_id = store.ids[0]
    opened = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    rows = rng.integers(0, len(store), (batch, 1))
    crops = rng.integers(0, store.crops_per_image, (batch, crops_per_image))
    _unchecked(store, rows, crops)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    _unchecked(store, rows, crops)
    second = time.perf_counter() - begun
    wanted = [first_id, *(store.ids[int(r)] for r in rng.integers(0, len(store), _LOOKUPS))]
    ids = store.ids
    begun = time.perf_counter()
    found = [ids.find(image_id) for image_id in wanted]
    lookup = (time.perf_counter() - begun) / len(wanted)
    if [ids[row] for row in found] != wanted:
        raise RuntimeError("a lookup by id found another image")
    after = resident()
    grown = {key: after[key] - before[key] for key in after} if before and after else None
    return {
        "images": len(store),
        "crops_per_image": store.crops_per_image,
        "open_seconds": opened,
        "first_batch_seconds": first,
        "second_batch_seconds": second,
        "lookup_microseconds": lookup * 1e6,
        "resident_bytes": grown,
    }


def _unchecked(store: LabelStore, rows: NDArray[Any], crops: NDArray[Any]) -> object:
    """Labels of some crops though the records of a hole in a file are none that can be."""
    records = store.of_kind("labels").raw_records(rows, crops).reshape(-1)
    return store.decode(records, np.broadcast_to(rows, crops.shape).reshape(-1))


def random_labels(count: int, rng: np.random.Generator) -> SoftLabels:
    """Labels with geometrically falling probabilities and an even tail."""
    scores = -np.cumsum(rng.exponential(1.5, (count, TOP_K + 1)), 1)
    log_probs = torch.from_numpy(scores).log_softmax(1).float()
    rest = float(np.log(CLASSES - TOP_K))
    tail = torch.stack([rest + (log_probs[:, TOP_K] - rest) / t for t in TAIL_TEMPERATURES], 1)
    step = rng.integers(1, CLASSES // TOP_K, (count, 1))
    classes = (rng.integers(0, CLASSES, (count, 1)) + step * np.arange(TOP_K)) % CLASSES
    top = log_probs[:, :TOP_K].contiguous()
    return SoftLabels(torch.from_numpy(classes), top, tail, CLASSES, top[:, 0])


def made_up_settings(crops: int, images: str, seed: int) -> manifests.Settings:
    return manifests.Settings(
        record=manifests.Record(**vars(RecordFormat.choose(TOP_K, CLASSES))),
        crops=manifests.Crops(
            count=crops, distribution=CropDistribution(), seed=seed, rule=CUT_RULE
        ),
        images=manifests.Images(decoder="none: a benchmark", exif=True, listing=images),
        teacher={"spec": "none: synthetic labels of ferkd bench store", "num_classes": CLASSES},
        class_names=tuple(f"n{c:08d}" for c in range(1, CLASSES + 1)),
        targets=True,
        part_images=_PART,
        software=f"ferkd {__version__}, torch {torch.__version__}",
    )


def _quartiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.25, 0.75])]
