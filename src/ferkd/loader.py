"""Multi-crop batches: each image is decoded once a visit and shows m of its crops.

A loader is addressed by step: the batch of a step depends on the images, the labels, the settings
and the seed alone, whatever the number of workers and wherever training was continued.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ferkd.crop_sources import CropSource, StoredCrops
from ferkd.crops import cut
from ferkd.errors import InputError
from ferkd.images import (
    ImageSource,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
    open_images,
)
from ferkd.labels import LabelStore, SoftLabels
from ferkd.mixing import Mix
from ferkd.regions import Regions
from ferkd.schedule import ImageOrder

logger = logging.getLogger("ferkd")


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
    full. ``workers`` 0 loads in this process.
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
        self._steps = _Steps(
            images,
            crops,
            ImageOrder(len(crops), seed),
            self.images_per_batch,
            crops_per_image,
            image_size,
            exif,
        )

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self._steps.source)

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


class _Steps(Dataset["Batch | _Failure"]):
    """The batch of each step; what the workers run."""

    def __init__(
        self,
        images: ImageSource,
        source: CropSource,
        order: ImageOrder,
        images_per_batch: int,
        m: int,
        size: int,
        exif: bool,
    ) -> None:
        self.images, self.source, self.order = images, source, order
        self.images_per_batch, self.m, self.size, self.exif = (
            images_per_batch,
            m,
            size,
            exif,
        )

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._batch(step)
        except InputError as error:  # as a value: a worker's exception would arrive as a traceback
            return _Failure(str(error))

    def _batch(self, step: int) -> Batch:
        count, m, size = self.images_per_batch, self.m, self.size
        rows, visits = self.order.at(step * count, count)
        chosen = self.source.choose(rows, visits, m)
        pixels = np.empty((count * m, size, size, 3), np.uint8)
        unreadable: list[Unreadable] = []
        for i in range(count):
            place, image_id = self.source.image(int(rows[i]))
            data = self.images.read(place)
            image = self._decoded(data, image_id)
            if isinstance(image, Unreadable):
                if not self.source.replaceable:
                    raise InputError(
                        f"{image_id} of {self.images.name} was labelled but cannot be read now "
                        f"({image.reason}); restore the file"
                    )
                image, rows[i] = self._stand_in(int(rows[i]), unreadable)
            boxes, flips = self.source.boxes(chosen, i, image_id, image.shape[:2])
            if visits[i] == 0 and not unreadable:  # once a run: hashing each time costs a tenth
                self.source.check(int(rows[i]), data)
            for c in range(m):
                cut(image, boxes[c], bool(flips[c]), size, out=pixels[i * m + c])
        if unreadable:  # the stand-ins have targets of their own
            chosen = replace(chosen, targets=self.source.choose(rows, visits, m).targets)
        return Batch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=chosen.labels,
            targets=torch.from_numpy(np.repeat(chosen.targets, m)),
            rows=torch.from_numpy(np.repeat(rows, m)),
            crops=torch.from_numpy(chosen.crops.reshape(-1)),
            regions=None
            if chosen.regions is None
            else torch.from_numpy(chosen.regions.reshape(-1)),
            unreadable=tuple(unreadable),
        )

    def _decoded(self, data: bytes, image_id: str) -> NDArray[np.uint8] | Unreadable:
        try:
            return decode(data, exif=self.exif)
        except UnreadableImage as error:
            return Unreadable(image_id, str(error))

    def _stand_in(self, row: int, unreadable: list[Unreadable]) -> tuple[NDArray[np.uint8], int]:
        """The next image after ``row`` that can be read; the ones before it are listed."""
        for step in range(len(self.source)):
            candidate = (row + step) % len(self.source)
            place, image_id = self.source.image(candidate)
            image = self._decoded(self.images.read(place), image_id)
            if not isinstance(image, Unreadable):
                return image, candidate
            unreadable.append(image)
        raise InputError(f"no image of {self.images.name} can be read; check the files")


def _one_thread(worker: int) -> None:
    """Workers are the parallelism; threads inside each would only fight over the cores."""
    cv2.setNumThreads(0)
