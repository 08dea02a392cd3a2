"""How fast crops are loaded: our loader beside the usual one, FKD's, and decoding alone.

Figures are crops per second and worker: the loading thread itself with 0 workers, else our worker
threads and the others' worker processes. Every worker has one thread, files are in the system's
cache, and the batches that arrive first after workers have started are not counted, on any side.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ferkd.images import ImageSource, open_images
from ferkd.images.cache import PixelCache
from ferkd.loading.crop_sources import StoredCrops
from ferkd.loading.loader import Loader
from ferkd.loading.order import ImageOrder
from ferkd.loading.processes import WorkerKind
from ferkd.models.student import IMAGENET_MEAN, IMAGENET_STD
from ferkd.store import LabelStore
from ferkd.study.bench.made_up import write_labels
from ferkd.study.bench.measuring import Target, described, in_turns, machine, one_thread, summary
from ferkd.study.bench.peers import FkdStyle, Floor, Rows, loaded, usual
from ferkd.study.bench.photos import MEGAPIXEL_SIDES, PHOTO_SIDES, write_photos
from ferkd.study.bench.store import write_fkd
from ferkd.system.compute import Normalise
from ferkd.system.errors import InputError
from ferkd.system.tables import markdown as table

OURS, CACHED, PROCESSES = "ferkd", "ferkd, cached", "ferkd, processes"
NORMALISED, FULL = "ferkd, normalised", "ferkd, decoding in full"
CACHED_NORMALISED = "ferkd, cached, normalised"
USUAL, FKD = "torchvision", "fkd style"
FLOOR, CUTS = "decoding alone", "decoding and cuts alone"
_SOURCES = 64  # photographs that megapixel ones are made of
_NEAR_FLOOR = 1.35  # of its time


@dataclass(frozen=True)
class _Side:
    """One side of the comparison: batches of ``crops`` crops of the steps start .. stop - 1."""

    crops: int
    batches: Callable[[int, int], Iterator[object]]
    first: int = 0  # step


@dataclass(frozen=True)
class _Bench:
    """What all sides read."""

    folder: Path
    source: ImageSource
    store: LabelStore
    labels: list[Path]  # FKD's files
    cache: PixelCache | None
    size: int
    batch: int
    order: ImageOrder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", ImageOrder(len(self.source), 0))

    def sides(self, m: int, workers: int, *, scaled: bool) -> dict[str, _Side]:
        """All sides for m crops an image; ``scaled`` adds ours without scaled decoding."""
        crops = self.count(m) * m
        normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), reuse=True)

        def ours(
            *, scaled: bool = True, cache: PixelCache | None = None, kind: WorkerKind = "threads"
        ) -> Loader:
            return Loader(
                self.source,
                StoredCrops(self.source, self.store),
                batch_size=crops,
                crops_per_image=m,
                image_size=self.size,
                workers=workers,
                worker_kind=kind,
                scaled_decoding=scaled,
                cache=cache,
            )

        plain = ours()
        # Fingerprints are checked in the first pass only, and a run has dozens.
        first = math.ceil(plain.steps_per_pass)

        def normalised(loader: Loader) -> Callable[[int, int], Iterator[object]]:
            return lambda start, stop: (normalise(b.images) for b in loader.batches(start, stop))

        sides = {
            OURS: _Side(crops, plain.batches, first),
            NORMALISED: _Side(crops, normalised(plain), first),
            USUAL: _Side(self.batch, self._usual(workers)),
            FKD: _Side(crops, self._fkd(m, workers), first),
            FLOOR: _Side(crops, self._floor(m, workers, None), first),
            CUTS: _Side(crops, self._floor(m, workers, self.store), first),
        }
        if workers:
            sides[PROCESSES] = _Side(crops, ours(kind="processes").batches, first)
        if scaled:
            sides[FULL] = _Side(crops, ours(scaled=False).batches, first)
        if self.cache is not None:
            cached = ours(cache=self.cache)
            sides[CACHED] = _Side(crops, cached.batches, first)
            sides[CACHED_NORMALISED] = _Side(crops, normalised(cached), first)
        return sides

    def count(self, m: int) -> int:
        """Images of a step."""
        return -(-self.batch // m)

    def _usual(self, workers: int) -> Callable[[int, int], Iterator[object]]:
        images = usual(self.folder, self.size)
        order = ImageOrder(len(images), 0)
        return lambda start, stop: iter(
            loaded(images, Rows(order, self.batch, start, stop), workers, "usual")
        )

    def _fkd(self, m: int, workers: int) -> Callable[[int, int], Iterator[object]]:
        files = [self.folder / image_id for image_id in self.source.ids]
        images = FkdStyle(files, self.labels, m, self.size)
        return lambda start, stop: iter(
            loaded(images, Rows(self.order, self.count(m), start, stop), workers, "fkd")
        )

    def _floor(
        self, m: int, workers: int, store: LabelStore | None
    ) -> Callable[[int, int], Iterator[object]]:
        images = Floor(self.source, m, self.size, store)
        return lambda start, stop: iter(
            loaded(images, Rows(self.order, self.count(m), start, stop), workers, "floor")
        )


def bench_loader(
    images: str | Path | None = None,
    *,
    crops_per_image: Sequence[int] = (1, 2, 4, 8),
    workers: Sequence[int] = (0, 2),
    image_size: int = 224,
    megapixels: bool = False,
    photos: int | None = None,
    batch_size: int | None = None,
    batches: int = 12,
    stored_crops: int = 50,
    cache: bool = True,
    cache_side: int | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Crops per second and process of our loader and of its peers, for each m and worker count.

    ``images`` is a local folder of class folders; without one, 500 x 375 pixel JPEGs are made.
    ``megapixels`` makes 12-megapixel ones of them instead. ``photos`` is the number of pictures
    made (256 and 24), ``batch_size`` the crops of a batch (128; 16 with megapixels), ``batches``
    how many of each process are timed in a turn. ``stored_crops`` per image are in both label sets.
    ``cache`` also times decoded images kept in memory, with megapixels at a shorter side of at
    most ``cache_side`` (1024) pixels. ``value`` is ours at m = 4, or the largest m, with the first
    worker count. Works in a temporary folder. Raises InputError for counts out of range.
    """
    counts = [*crops_per_image, batches, stored_crops, repeats, image_size]
    if not crops_per_image or not workers or min(counts) < 1 or min(workers) < 0:
        raise InputError(
            f"crops per image {list(crops_per_image)}, {batches} batches, {stored_crops} stored "
            f"crops, {repeats} repeats and size {image_size} must be at least 1, workers "
            f"{list(workers)} at least 0"
        )
    if max(crops_per_image) > stored_crops:
        raise InputError(
            f"{max(crops_per_image)} crops per image of {stored_crops} stored: store as many"
        )
    with tempfile.TemporaryDirectory(prefix="ferkd-bench-") as place, one_thread():
        folder = _pictures(Path(place) / "photos", images, megapixels, photos)
        source = open_images(folder, targets=False)
        store = write_labels(Path(place) / "store", source, stored_crops)
        kept, filling = None, 0.0
        if cache:
            side = (cache_side or 1024) if megapixels else cache_side
            kept = PixelCache(source, "ram", max_side=side)
            filling = fill(source, store, kept)
        bench = _Bench(
            folder,
            source,
            store,
            write_fkd(Path(place) / "fkd", store),
            kept,
            image_size,
            batch_size or (16 if megapixels else 128),
        )
        rows = [
            _compared(bench, m, count, batches, repeats, megapixels)
            for count in workers
            for m in crops_per_image
        ]
        encoded = sum((folder / i).stat().st_size for i in source.ids) / len(source)
    first = {row["crops_per_image"]: row for row in rows[: len(crops_per_image)]}
    main = first.get(4, first[max(first)])
    per_core = {name: side["median"] for name, side in main["crops_per_second_per_core"].items()}
    return {
        "benchmark": "loader",
        "value": per_core[OURS],
        "unit": "crops per second and worker, "
        f"m = {main['crops_per_image']}, {main['workers']} workers",
        "baselines": {name: value for name, value in per_core.items() if name != OURS},
        "ratios": {n: per_core[OURS] / v for n, v in per_core.items() if n != OURS},
        "targets": described(targets(rows, megapixels)),
        "details": {
            "images": len(source),
            "pixels": "12 megapixels" if megapixels else "as given" if images else "500x375",
            "mean_bytes": encoded,
            "image_size": image_size,
            "batch_crops": bench.batch,
            "stored_crops": stored_crops,
            "repeats": repeats,
            "cache": None
            if kept is None
            else {"bytes": kept.need.bytes, "max_side": kept.max_side, "fill_seconds": filling},
            "rows": rows,
        },
        "machine": machine(),
    }


def targets(rows: Sequence[dict[str, Any]], megapixels: bool) -> dict[str, Target]:
    """The project's targets for the rows that they speak of."""
    found: dict[str, Target] = {}

    def add(name: str, row: dict[str, Any], side: str, peer: str, target: float) -> None:
        sides = row["crops_per_second_per_core"]
        if side in sides:
            ratio = sides[side]["median"] / sides[peer]["median"]
            found[f"{name}, m = {row['crops_per_image']}, {row['workers']} workers"] = Target(
                target, ratio
            )

    for row in rows:
        m = row["crops_per_image"]
        for ours, cached in ((OURS, CACHED), (NORMALISED, CACHED_NORMALISED)):
            if m == 4:
                add(f"{cached} / {FKD}", row, cached, FKD, 10)
                add(f"{ours} / {USUAL}", row, ours, USUAL, 8 if megapixels else 6)
            if m in (4, 8) and not megapixels:
                add(f"{ours} / {FKD}", row, ours, FKD, 3 if m == 4 else 4)
        if m == 4 and not megapixels:
            sides = row["crops_per_second_per_core"]
            found[f"time / time of {FLOOR}, m = 4, {row['workers']} workers"] = Target(
                _NEAR_FLOOR, sides[FLOOR]["median"] / sides[OURS]["median"], "<="
            )
    return found


def _pictures(place: Path, images: str | Path | None, megapixels: bool, photos: int | None) -> Path:
    """The folder of pictures to load: the one given, or new ones made in ``place``."""
    sources: list[bytes] = []
    if images is not None:
        if not Path(images).is_dir():
            raise InputError(f"{images} is not a local folder; the peers read local files only")
        if not megapixels:
            return Path(images)
        given = open_images(images, targets=False)
        step = max(1, len(given) // _SOURCES)
        sources = [given.read(i) for i in range(0, len(given), step)]
    if photos is not None and photos < 1:
        raise InputError(f"photos is {photos}; it must be at least 1")
    sides = MEGAPIXEL_SIDES if megapixels else PHOTO_SIDES
    count = photos or (24 if megapixels else 256)
    wanted = count * sides[0] * sides[1]  # bytes, at twice the most that a file has a pixel
    place.mkdir(parents=True)
    if shutil.disk_usage(place).free < wanted:
        raise InputError(
            f"{count} pictures may take {wanted / 1e9:.1f} GB in {place.parent.parent}, which is "
            "not free; make fewer, or name another place in TMPDIR"
        )
    return write_photos(place, count, sides=sides, sources=sources)


def fill(source: ImageSource, store: LabelStore, cache: PixelCache) -> float:
    """The seconds of the pass that fills the cache, in this process."""
    crops = StoredCrops(source, store)
    loader = Loader(
        source, crops, batch_size=1, crops_per_image=1, image_size=8, workers=0, cache=cache
    )
    begun = time.perf_counter()
    for _ in loader.batches(0, len(source)):
        pass
    return time.perf_counter() - begun


def _compared(
    bench: _Bench, m: int, workers: int, batches: int, repeats: int, megapixels: bool
) -> dict[str, Any]:
    """All sides at one m and worker count."""
    sides = bench.sides(m, workers, scaled=megapixels)
    processes = max(1, workers)
    counted = batches * processes
    total = processes + counted

    def rate(side: _Side) -> Callable[[int], float]:
        def measure(turn: int) -> float:
            first = side.first + turn * total
            arriving = side.batches(first, first + total)
            for _ in range(processes):
                next(arriving)
            begun = time.perf_counter()
            for _ in range(counted):
                next(arriving)
            seconds = time.perf_counter() - begun
            for _ in arriving:  # worker processes end here, off the clock
                pass
            return counted * side.crops / seconds / processes

        return measure

    rates = in_turns({name: rate(side) for name, side in sides.items()}, repeats)
    found = {name: summary(values) for name, values in rates.items()}
    return {
        "crops_per_image": m,
        "workers": workers,
        "crops_per_second_per_core": found,
        "ratios": {
            name: found[OURS]["median"] / side["median"]
            for name, side in found.items()
            if name != OURS
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """The report of `bench_loader` as a Markdown table: crops per second and process."""
    rows = result["details"]["rows"]
    names = list(rows[0]["crops_per_second_per_core"])
    lines = []
    for row in rows:
        sides = row["crops_per_second_per_core"]
        figures = [f"{sides[name]['median']:.0f}" for name in names]
        lines.append([row["workers"], row["crops_per_image"], *figures])
    return table(["workers", "m", *names], lines, figures=True)
