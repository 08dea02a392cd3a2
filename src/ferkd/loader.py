"""Multi-crop batches: each image is decoded once a visit and shows m of its crops.

A loader is addressed by step: the batch of a step depends on the images, the labels, the settings
and the seed alone, whatever the number of workers and wherever training was continued.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ferkd.crop_sources import Chosen, CropSource, Placed, StoredCrops
from ferkd.crops import cut, cut_scaled, largest_reduction
from ferkd.errors import InputError
from ferkd.images import (
    ImageSource,
    Picture,
    Pictures,
    PixelCache,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    open_images,
)
from ferkd.labels import LabelStore, SoftLabels
from ferkd.mixing import Mix
from ferkd.regions import Regions
from ferkd.schedule import ImageOrder

logger = logging.getLogger("ferkd")

_GROUP = 16  # images whose bytes are held at a time


@dataclass(frozen=True)
class Batch:
    """B = n * m crops; the m crops of an image are consecutive rows.

    ``images`` uint8 [B, 3, S, S], channels last in memory; ``labels`` the calibrated soft labels,
    None for hard-label training; ``targets`` int64 [B], -1 for none; ``rows`` int64 [B], the
    image's place in the loader's images; ``crops`` int64 [B], its crop number; ``regions`` int8
    [B] or None; ``unreadable`` the images that others stand in for.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor
    regions: Tensor | None = None
    unreadable: tuple[Unreadable, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor | SoftLabels]:
        """Images, then labels (targets where there are none): ``for images, labels in loader``."""
        return iter((self.images, self.targets if self.labels is None else self.labels))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by PyTorch's DataLoader)."""
        pinned = replace(self, labels=None)._map(lambda t: t.pin_memory())
        return replace(pinned, labels=None if self.labels is None else self.labels.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=function(self.images),
            labels=None if self.labels is None else self.labels.map(function),
            targets=function(self.targets),
            rows=function(self.rows),
            crops=function(self.crops),
            regions=None if self.regions is None else function(self.regions),
        )


class Loader:
    """Batches by step: ``batch_size`` crops, ``crops_per_image`` from each image.

    ``batch_size`` counts crops; a step shows ceil(batch_size / crops_per_image) images. The
    images follow each other in one endless shuffled stream (see `ImageOrder`), so every batch is
    full. ``workers`` 0 loads in this process. ``size_at`` gives the side of the crops of a step
    where it is not always ``image_size``. ``scaled_decoding`` decodes a large JPEG at a half, a
    quarter or an eighth where all its crops are cut smaller still (see `ferkd.crops.cut_scaled`);
    ``cache`` keeps decoded images.
    """

    def __init__(
        self,
        images: ImageSource,
        crops: CropSource,
        *,
        batch_size: int,
        crops_per_image: int,
        image_size: int,
        seed: int = 0,
        workers: int = 0,
        exif: bool = True,
        size_at: Callable[[int], int] | None = None,
        scaled_decoding: bool = True,
        cache: PixelCache | None = None,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("crops_per_image", crops_per_image),
            ("image_size", image_size),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if workers < 0:
            raise InputError(f"workers is {workers}; it must be at least 0 (0: this process)")
        self.images_per_batch = -(-batch_size // crops_per_image)
        self.batch_size = self.images_per_batch * crops_per_image
        self.crops_per_image = crops_per_image
        self.workers = workers
        self.unreadable: dict[str, Unreadable] = {}
        self.cache = cache
        shares_memory = cache is not None and cache.kind == "ram" and workers > 0
        self._start_method = _forking(workers) if shares_memory else None
        self._steps = _Steps(
            Pictures(images, exif=exif, scaled=scaled_decoding, cache=cache),
            crops,
            ImageOrder(len(crops), seed),
            self.images_per_batch,
            crops_per_image,
            size_at or _Constant(image_size),
        )

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self._steps.crops)

    @property
    def steps_per_pass(self) -> float:
        """Steps in which every image is visited once: a pass, m epochs as FKD counts them."""
        return self.images / self.images_per_batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start .. stop - 1.

        Raises InputError for an image that was labelled but cannot be read now, and when more
        than 1 % of the images of ordinary training cannot be read; up to then the next image
        stands in for each, and `unreadable` lists them.
        """
        if start >= stop:
            return
        loaded = DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=min(self.workers, stop - start),
            worker_init_fn=_one_thread,
            multiprocessing_context=self._start_method if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loaded:
            if isinstance(batch, _Failure):
                raise InputError(batch.message)
            for skip in batch.unreadable:
                if skip.id not in self.unreadable:
                    self.unreadable[skip.id] = skip
                    logger.warning("%s cannot be read (%s); it is left out", *skip)
                    check_unreadable_share(list(self.unreadable.values()), self.images)
            yield batch


class SoftLabelLoader(Loader):
    """Batches with stored soft labels, for any training loop.

    Iterating gives one pass over the images, the next pass each time it is completed; `epoch` may
    be set to continue. Passes have one length, so one may end a few images before or after the
    last visit of an image; none is left out. ``images`` is a folder or a source, ``store`` a path
    or an open store, ``regions`` FerKD's calibration (None: the labels as they are) and ``mix`` a
    mixing applied to each batch (on uint8 images).
    """

    def __init__(
        self,
        images: str | Path | ImageSource,
        store: str | Path | LabelStore,
        *,
        batch_size: int,
        crops_per_image: int = 4,
        image_size: int = 224,
        workers: int = 0,
        regions: Regions | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        scaled_decoding: bool = True,
        cache: PixelCache | None = None,
    ) -> None:
        opened = LabelStore.open(store)
        source = open_images(images, targets=opened.settings.targets)
        crops = StoredCrops(source, opened, regions=regions, seed=seed)
        super().__init__(
            source,
            crops,
            batch_size=batch_size,
            crops_per_image=crops_per_image,
            image_size=image_size,
            seed=seed,
            workers=workers,
            exif=opened.settings.images.exif,
            scaled_decoding=scaled_decoding,
            cache=cache,
        )
        self.mining = crops.mining
        self.epoch = 0
        self._mix, self._seed = mix or Mix(), seed

    def __len__(self) -> int:
        """The number of batches of a pass: the nearest to one visit of each image, at least 1."""
        return max(1, round(self.steps_per_pass))

    def __iter__(self) -> Iterator[Batch]:
        first = self.epoch * len(self)
        for step, batch in enumerate(self.batches(first, first + len(self)), first):
            assert batch.labels is not None
            images, labels = self._mix(
                batch.images,
                batch.labels,
                crops_per_image=self.crops_per_image,
                generator=np.random.default_rng([self._seed, step]),
            )
            yield replace(batch, images=images, labels=labels)
        self.epoch += 1


@dataclass(frozen=True)
class _Failure:
    """What a worker says of a batch that bad input kept it from making."""

    message: str


@dataclass(frozen=True)
class _Constant:
    """The same size at every step (a function of its own could not be sent to a worker)."""

    size: int

    def __call__(self, step: int) -> int:
        return self.size


class _Steps(Dataset["Batch | _Failure"]):
    """The batch of each step; what the workers run."""

    def __init__(
        self,
        pictures: Pictures,
        crops: CropSource,
        order: ImageOrder,
        images_per_batch: int,
        m: int,
        size_at: Callable[[int], int],
    ) -> None:
        self.pictures, self.crops, self.order = pictures, crops, order
        self.images_per_batch, self.m, self.size_at = images_per_batch, m, size_at

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._batch(step)
        except InputError as error:  # as a value: a worker's exception would arrive as a traceback
            return _Failure(str(error))

    def _batch(self, step: int) -> Batch:
        count, m, size = self.images_per_batch, self.m, self.size_at(step)
        rows, visits = self.order.at(step * count, count)
        shown = _Shown(
            rows,
            visits,
            self.crops.choose(rows, visits, m),
            sizes=np.ones((count, 2), np.int64),
            placed=Placed(np.zeros((count, m, 4), np.int32), np.zeros((count, m), bool)),
            pixels=_shared(count * m, size),
        )
        for start in range(0, count, _GROUP):
            self._show(shown, slice(start, min(count, start + _GROUP)))
        chosen = shown.chosen
        if shown.unreadable:  # the stand-ins have targets of their own
            chosen = self.crops.choose(rows, visits, m)
        labels, regions = self.crops.labels(chosen, shown.placed, shown.sizes)
        return Batch(
            images=shown.pixels.permute(0, 3, 1, 2),
            labels=labels,
            targets=torch.from_numpy(np.repeat(chosen.targets, m)),
            rows=torch.from_numpy(np.repeat(rows, m)),
            crops=torch.from_numpy(chosen.crops.reshape(-1)),
            regions=None if regions is None else torch.from_numpy(regions.reshape(-1)),
            unreadable=tuple(shown.unreadable),
        )

    def _show(self, shown: _Shown, group: slice) -> None:
        """Fill the rows of ``group``: read the images, place their crops together, cut them."""
        pictures = [self._picture(int(row)) for row in shown.rows[group]]
        for i, picture in enumerate(pictures, group.start):
            if isinstance(picture, Picture):
                shown.sizes[i] = picture.height, picture.width
        boxes, flips = self.crops.boxes(shown.chosen[group], shown.sizes[group])
        shown.placed.boxes[group], shown.placed.flips[group] = boxes, flips
        for i, picture in enumerate(pictures, group.start):
            if isinstance(picture, Unreadable):
                failed: Unreadable | None = picture
            else:
                if shown.visits[i] == 0:  # once a run: hashing each time costs a tenth
                    self.crops.check(int(shown.rows[i]), picture)
                failed = self._cut(shown, i, picture)
            if failed is not None:
                self._stand_in(shown, i, failed)

    def _picture(self, row: int) -> Picture | Unreadable:
        place, image_id = self.crops.image(row)
        try:
            return self.pictures.open(place)
        except UnreadableImage as error:
            return self._unreadable(image_id, error)

    def _unreadable(self, image_id: str, error: UnreadableImage) -> Unreadable:
        if not self.crops.replaceable:
            raise InputError(
                f"{image_id} of {self.pictures.source.name} was labelled but cannot be read now "
                f"({error}); restore the file"
            )
        return Unreadable(image_id, str(error))

    def _cut(self, shown: _Shown, i: int, picture: Picture) -> Unreadable | None:
        """Cut the crops of the i-th image, unless it turns out unreadable."""
        m, size = self.m, shown.pixels.shape[1]
        boxes, flips = shown.placed.boxes[i], shown.placed.flips[i]
        reduction = largest_reduction(boxes, size) if self.pictures.scaled else 1
        try:
            image, scale = picture.pixels(reduction)
        except UnreadableImage as error:
            return self._unreadable(self.crops.image(int(shown.rows[i]))[1], error)
        out = shown.pixels[i * m : (i + 1) * m].numpy()
        for box, flip, crop in zip(boxes, flips, out, strict=True):
            if scale is None:
                cut(image, box, bool(flip), size, out=crop)
            else:
                full = (picture.height, picture.width)
                cut_scaled(image, full, scale, box, bool(flip), size, out=crop)
        return None

    def _stand_in(self, shown: _Shown, i: int, unreadable: Unreadable) -> None:
        """Show the next image that can be read in place of the i-th."""
        first = int(shown.rows[i])
        for step in range(1, len(self.crops)):
            shown.unreadable.append(unreadable)
            row = (first + step) % len(self.crops)
            picture = self._picture(row)
            if isinstance(picture, Unreadable):
                unreadable = picture
                continue
            one = slice(i, i + 1)
            shown.rows[i], shown.sizes[i] = row, (picture.height, picture.width)
            chosen = self.crops.choose(shown.rows[one], shown.visits[one], self.m)
            boxes, flips = self.crops.boxes(chosen, shown.sizes[one])
            shown.placed.boxes[one], shown.placed.flips[one] = boxes, flips
            failed = self._cut(shown, i, picture)
            if failed is None:
                return
            unreadable = failed
        raise InputError(f"no image of {self.pictures.source.name} can be read; check the files")


@dataclass
class _Shown:
    """The n images of a batch as they are worked out, in place: rows and visits [n], what was
    chosen, sizes [n, 2], boxes [n, m, 4] and flips [n, m], pixels uint8 [n * m, S, S, 3]."""

    rows: NDArray[np.int64]
    visits: NDArray[np.int64]
    chosen: Chosen
    sizes: NDArray[np.int64]
    placed: Placed
    pixels: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)


def _shared(crops: int, size: int) -> Tensor:
    """Room for a batch of crops; in a worker, in memory that the training process can read."""
    shape = (crops, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As PyTorch's own collation does: cutting into shared memory spares copying the batch there.
    storage = torch.UntypedStorage._new_shared(crops * size * size * 3)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _forking(workers: int) -> str:
    """The way to start workers that share this process's memory."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"data.cache ram with {workers} workers needs processes that share memory, which this "
            "system does not have; use data.workers 0 or data.cache: disk"
        )
    return "fork"


def _one_thread(worker: int) -> None:
    """Workers are the parallelism; threads inside each would only fight over the cores."""
    cv2.setNumThreads(0)
