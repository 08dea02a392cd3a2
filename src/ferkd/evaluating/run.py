"""How good a student is: accuracy, calibration, and agreement with its teacher's labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd.crops import center_box, cut
from ferkd.evaluating.measures import measure, per_class_accuracy, teacher_agreement
from ferkd.images import (
    ImageSource,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
    named,
    open_images,
)
from ferkd.loading.crop_sources import match
from ferkd.models.classes import Known, match_folders
from ferkd.models.student import check_input, load_run
from ferkd.store import LabelStore
from ferkd.store.manifest import check_kind
from ferkd.system.compute import Normalise, Precision, autocast, resolve_device, resolve_precision
from ferkd.system.distributed import Ranks, gathered, padded_rows_of_all
from ferkd.system.errors import InputError
from ferkd.system.plain import read_json
from ferkd.system.results import Result
from ferkd.system.storage import local_path
from ferkd.system.threads import workers as worker_threads

_MOST_PIXELS = 4096  # of a side
CACHE_BYTES = 1 << 30  # central crops that take less are kept in memory between evaluations
CHECKED = 2000  # images that a check looks at where they are not kept
_CHECK_BATCH = 64

log = logging.getLogger("ferkd")


@dataclass(frozen=True)
class Predictions:
    """Logits float32 [N, C] on the CPU; targets int64 [N], -1 for none; rows int64 [N]: the
    images' places in their source."""

    logits: Tensor
    targets: Tensor
    rows: Tensor


class NonFiniteOutputs(RuntimeError):
    """The model answers with infinities or NaN."""


class CenterCrops:
    """The central crops of an image source, in batches.

    ``image_size`` is the crop's side in pixels, ``crop_fraction`` its side as a share of the
    image's shorter side; ``workers`` threads decode; ``exif`` turns images by their EXIF
    orientation. Crops that take at most ``cache_bytes``
    together are kept in memory after the first pass. Unreadable images are skipped and listed in
    ``unreadable``; too many of them raise InputError. Of several processes each has every
    ``ranks.world_size``-th image.
    """

    def __init__(
        self,
        images: ImageSource,
        *,
        image_size: int,
        crop_fraction: float = 1.0,
        workers: int = 0,
        exif: bool = True,
        cache_bytes: int = CACHE_BYTES,
        ranks: Ranks | None = None,
    ) -> None:
        self.images, self.exif = images, exif
        self.ranks = ranks or Ranks()
        self.image_size, self.crop_fraction = image_size, crop_fraction
        self.workers = workers
        self.unreadable: list[Unreadable] = []
        self._keep = len(images) * 3 * image_size**2 <= cache_bytes
        self._kept: tuple[Tensor, Tensor] | None = None

    def check(self) -> None:
        """Raise InputError where too many images are unreadable.

        Looks at all images where their crops are kept, which costs nothing more than the first
        pass would; else at ``CHECKED`` of them, evenly spread.
        """
        if self._keep:
            for _ in self.batches(_CHECK_BATCH):
                pass
            return
        some = range(0, len(self.images), -(-len(self.images) // CHECKED))
        self.unreadable = []
        for _ in self._decoded(_CHECK_BATCH, some):
            pass
        check_unreadable_share(self.unreadable, len(some))

    def batches(
        self, batch_size: int, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images uint8 [b, 3, S, S], rows int64 [b]) for every readable image, in order; of the
        places ``wanted`` alone where they are given.

        Of several processes each has its own images (but all of ``wanted``), and all have the
        whole list of unreadable ones.
        """
        if wanted is not None:
            self.unreadable = []
            yield from self._decoded(batch_size, wanted)
            return
        if self._kept is not None:
            pixels, rows = self._kept
            if len(rows):
                yield from zip(pixels.split(batch_size), rows.split(batch_size), strict=True)
            return
        self.unreadable = []
        seen: list[tuple[Tensor, Tensor]] = []
        for batch in self._decoded(batch_size):
            if self._keep:
                seen.append(batch)
            yield batch
        if self.ranks.world_size > 1:
            self.unreadable = [skipped for part in gathered(self.unreadable) for skipped in part]
        check_unreadable_share(self.unreadable, len(self.images))
        for skipped in self.unreadable if self.ranks.rank == 0 else ():
            log.warning("%s: skipped %s (%s)", self.images.name, skipped.id, skipped.reason)
        if self._keep:  # nothing at all, too, where a process has no image that can be read
            nothing = torch.empty((0, 3, 1, 1), dtype=torch.uint8), torch.empty(0, dtype=torch.long)
            seen = seen or [nothing]
            self._kept = (torch.cat([b[0] for b in seen]), torch.cat([b[1] for b in seen]))

    def _decoded(
        self, batch_size: int, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        own = range(self.ranks.rank, len(self.images), self.ranks.world_size)
        places = own if wanted is None else wanted
        chunks = (places[c.start : c.stop] for c in _chunks(len(places), batch_size))
        if self.workers == 0:
            for rows in chunks:
                yield from self._collect(rows, map(self._crop, rows))
            return
        with worker_threads(self.workers) as pool:
            # One batch ahead, so that decoding goes on while the model works.
            ahead = ((rows, pool.map(self._crop, rows)) for rows in chunks)
            pending = next(ahead, None)
            while pending is not None:
                following = next(ahead, None)
                yield from self._collect(*pending)
                pending = following

    def _collect(
        self, rows: Sequence[int], crops: Iterator[NDArray[np.uint8] | UnreadableImage]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        good = []
        for row, crop in zip(rows, crops, strict=True):
            if isinstance(crop, UnreadableImage):
                self.unreadable.append(Unreadable(self.images.ids[row], str(crop)))
            else:
                good.append((crop, row))
        if good:
            pixels = torch.from_numpy(np.stack([crop for crop, _ in good]))
            yield pixels.permute(0, 3, 1, 2), torch.tensor([row for _, row in good])

    def _crop(self, row: int) -> NDArray[np.uint8] | UnreadableImage:
        try:
            with named(self.images.ids[row], self.images.name):
                image = decode(self.images.read(row), exif=self.exif)
        except UnreadableImage as error:
            return error
        box = center_box(image.shape[0], image.shape[1], self.crop_fraction)
        return cut(image, box, False, self.image_size)


def predict(
    model: nn.Module,
    crops: CenterCrops,
    *,
    normalise: Normalise,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> Predictions:
    """The model's logits for the central crop of every image, in eval mode.

    The model is used where it is, on the normaliser's device, and returned to its mode. Raises
    NonFiniteOutputs when logits are not finite, InputError when no image can be read. Of several
    processes each asks the model of its own images and is given the answers for all.
    """
    logits, rows = [], []
    for pixels, numbers in crops.batches(batch_size):
        logits.append(_forward(model, pixels, normalise, dtype))
        rows.append(numbers)
    if crops.ranks.world_size == 1 and not logits:
        raise InputError(f"{crops.images.name} holds no image that can be read; check the path")
    found = torch.cat(logits) if logits else torch.empty(0)
    where = torch.cat(rows) if rows else torch.empty(0, dtype=torch.long)
    if crops.ranks.world_size > 1:
        found, where = padded_rows_of_all(found), padded_rows_of_all(where)
        order = where.argsort()
        found, where = found[order], where[order]
        if not len(where):
            raise InputError(f"{crops.images.name} holds no image that can be read; check the path")
    bad = int((~found.isfinite().all(1)).sum())
    if bad:
        raise NonFiniteOutputs(
            f"the model's outputs for {bad} of {len(found)} images of {crops.images.name} are not "
            "finite: its weights have diverged or overflow in this precision; evaluate with "
            "precision fp32, or train with a lower optimizer.lr"
        )
    targets = torch.from_numpy(crops.images.targets.astype(np.int64))[where]
    return Predictions(found, targets, where)


def _forward(model: nn.Module, pixels: Tensor, normalise: Normalise, dtype: torch.dtype) -> Tensor:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(normalise.device, dtype):
            return model(normalise(pixels)).float().cpu()
    finally:
        model.train(training)


def match_classes(
    targets: Tensor,
    found: Sequence[str],
    wanted: Sequence[str],
    *,
    source: str,
    class_map: str | Path | Mapping[str, Any] | None = None,
) -> Tensor:
    """``targets`` counted by the class names ``found``, recounted by the names ``wanted``.

    ``class_map`` says which of ``wanted`` each of ``found`` is, which may then be a part of them.
    Raises InputError, naming the differences, unless both hold the same names.
    """
    if class_map is not None:
        known = Known("the model", len(wanted), tuple(wanted))
        columns = match_folders(found, known, class_map).columns
        return torch.tensor([*columns, -1])[targets]
    missing = [name for name in wanted if name not in set(found)]
    unknown = [name for name in found if name not in set(wanted)]
    if missing or unknown:
        lacks = f"{source} lacks {_some(missing)}; " if missing else ""
        extra = f"{source} has {_some(unknown)}, unknown to the model; " if unknown else ""
        raise InputError(
            f"the classes do not match: {lacks}{extra}give images of the classes that the model "
            "was trained on"
        )
    place = {name: number for number, name in enumerate(wanted)}
    # The last entry is for -1, no ground truth.
    table = torch.tensor([*(place[name] for name in found), -1])
    return table[targets]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(Result):
    """What :func:`evaluate` found: the figures of :func:`measure`, and on what.

    ``per_class`` has None for a class without images, ``unreadable`` the ids of images left out;
    ``epochs`` is None where the run does not tell. ``agreement`` and ``kl`` are with a store.
    """

    top1: float
    top5: float
    nll: float
    brier: float
    ece: float
    balanced_accuracy: float
    per_class: dict[str, float | None]
    images: int
    unreadable: list[str]
    epochs: float | None
    seconds: float
    crops_per_second: float
    run: str
    agreement: float | None = None
    kl: float | None = None


def evaluate(
    run: str | Path,
    images: str | Path | ImageSource,
    *,
    store: str | Path | LabelStore | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str = "auto",
    precision: Precision = "fp32",
    image_size: int | None = None,
    crop_fraction: float | None = None,
    store_crops: int = 4,
    class_map: str | Path | Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a run's folder, or a weights file beside its config.json, on images.

    ``image_size`` (pixels) and ``crop_fraction`` default to the run's own. ``class_map`` says which
    of the run's classes the folders are, where their names do not. With the teacher's ``store`` of
    these images the agreement with it is measured, too, on the first ``store_crops`` stored crops
    of each image. Raises InputError for classes that do not match,
    images without ground truth, and a store of other images.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("store_crops", store_crops),
    ):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be at least 0")
    if image_size is not None and not 1 <= image_size <= _MOST_PIXELS:
        raise InputError(f"image_size is {image_size}; it must be 1 to {_MOST_PIXELS} pixels")
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise InputError(f"crop_fraction is {crop_fraction:g}; it must be above 0 and at most 1")
    run = local_path(run, "run")
    model, config = load_run(run)
    where = resolve_device(device)
    model = model.to(where)
    size = image_size or config.image_size
    check_input(
        *(model, config.architecture, size, config.num_classes),
        remedy=f"evaluate it at {config.image_size}, the size it was trained for",
    )
    normalise = Normalise(config.mean, config.std, where)
    dtype = resolve_precision(precision, where)
    source = open_images(images)
    crops = CenterCrops(
        source,
        image_size=size,
        crop_fraction=crop_fraction or config.crop_fraction,
        workers=workers,
        exif=config.exif,
        cache_bytes=0,
    )
    started = time.perf_counter()
    found = predict(model, crops, normalise=normalise, dtype=dtype, batch_size=batch_size)
    seconds = time.perf_counter() - started
    if not bool((found.targets >= 0).any()):
        raise InputError(f"{source.name} has no ground truth; use images in class folders")
    targets = match_classes(
        found.targets,
        source.class_names,
        config.class_names or tuple(map(str, range(config.num_classes))) * (class_map is not None),
        source=source.name,
        class_map=class_map,
    )
    known = targets >= 0
    accuracy = per_class_accuracy(found.logits[known], targets[known])
    agreement: dict[str, float] = {}
    if store is not None:
        agreement = store_agreement(
            model,
            source,
            LabelStore.open(store),
            num_classes=config.num_classes,
            image_size=size,
            normalise=normalise,
            dtype=dtype,
            batch_size=batch_size,
            crops=store_crops,
        )
    return Evaluation(
        **measure(found.logits, targets),
        per_class={
            name: None if np.isnan(value) else float(value)
            for name, value in zip(config.class_names, accuracy, strict=True)
        },
        images=len(targets),
        unreadable=[skipped.id for skipped in crops.unreadable],
        epochs=_epochs(run),
        seconds=seconds,
        crops_per_second=len(targets) / seconds,
        run=str(run),
        **agreement,
    )


def store_agreement(
    model: nn.Module,
    images: ImageSource,
    store: LabelStore,
    *,
    num_classes: int,
    image_size: int,
    normalise: Normalise,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
    crops: int = 4,
) -> dict[str, float]:
    """:func:`teacher_agreement` on the first ``crops`` stored crops of every image of the store.

    The student sees the crops that the teacher labelled. Raises InputError when the store is not
    of these images.
    """
    if store.num_classes != num_classes:
        raise InputError(
            f"the labels {store.path} have {store.num_classes} classes, the model {num_classes}; "
            "give labels of the model's classes"
        )
    check_kind(store.geometry, "random", store.path)
    places = match(images, store)
    count = min(crops, store.crops_per_image)
    sums = {"agreement": 0.0, "kl": 0.0}
    total = 0
    for rows in _chunks(len(store), max(1, batch_size // count)):
        index = np.asarray(rows)[:, None], np.arange(count)[None]
        boxes, flips = store.boxes(*index), store.flips(*index)
        pixels = np.empty((len(rows), count, image_size, image_size, 3), np.uint8)
        for i, row in enumerate(rows):
            image = decode(images.read(int(places[row])), exif=store.geometry.images.exif)
            for j in range(count):
                cut(image, boxes[i, j], bool(flips[i, j]), image_size, out=pixels[i, j])
        batch = torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2)
        logits = _forward(model, batch, normalise, dtype)
        found = teacher_agreement(logits, store.labels(*index).dense())
        sums = {key: sums[key] + value * len(batch) for key, value in found.items()}
        total += len(batch)
    return {key: value / total for key, value in sums.items()}


def _chunks(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def _epochs(run: Path) -> float | None:
    path = (run if run.is_dir() else run.parent) / "result.json"
    return read_json(path, "result of a run").get("epochs") if path.is_file() else None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
