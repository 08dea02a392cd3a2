"""Multi-crop batches: each image is decoded once a visit and shows m of its crops.

A loader is addressed by step: the batch of a step depends on the images, the labels, the settings
and the seed alone, whatever the number of workers and wherever training was continued.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from torch import cuda
from torch.utils.data import DataLoader

from ferkd.calibration.regions import Regions
from ferkd.images import (
    ImageSource,
    Pictures,
    PixelCache,
    Unreadable,
    check_unreadable_share,
    open_images,
)
from ferkd.loading.batch import Batch
from ferkd.loading.crop_sources import CropSource, StoredCrops
from ferkd.loading.mixing import Mix
from ferkd.loading.order import ImageOrder
from ferkd.loading.steps import CutOn, Failure, Steps
from ferkd.store import LabelStore
from ferkd.system.errors import InputError
from ferkd.system.threads import ahead, workers

logger = logging.getLogger("ferkd")

WorkerKind = Literal["threads", "processes"]


class Loader:
    """Batches by step: ``batch_size`` crops, ``crops_per_image`` from each image.

    ``batch_size`` counts crops; a step shows ceil(batch_size / crops_per_image) images. The
    images follow each other in one endless shuffled stream (see `ImageOrder`), so every batch is
    full. ``workers`` 0 loads in this thread. ``worker_kind``: "threads", which cost nothing to
    start and have nothing to hand over, as decoding and cutting release Python's lock; or
    "processes", for an image source that computes in Python. ``size_at`` gives the side of the
    crops of a step where it is not always ``image_size``. ``scaled_decoding`` decodes a large JPEG
    at a half, a quarter or an eighth where all its crops are cut smaller still (see
    `ferkd.crops.cut_scaled`); ``cache`` keeps decoded images. ``cut_on`` "device" leaves the crops
    to be cut where the batch is sent (`Batch.cut`): batches then hold whole images.
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
        cut_on: CutOn = "workers",
        worker_kind: WorkerKind = "threads",
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
        if cut_on not in get_args(CutOn):
            raise InputError(f"cut_on is {cut_on!r}; use workers or device")
        self.images_per_batch = -(-batch_size // crops_per_image)
        self.batch_size = self.images_per_batch * crops_per_image
        self.crops_per_image = crops_per_image
        if worker_kind not in get_args(WorkerKind):
            raise InputError(f"worker_kind is {worker_kind!r}; use threads or processes")
        self.workers, self.worker_kind = workers, worker_kind
        self.unreadable: dict[str, Unreadable] = {}
        self.cache = cache
        processes = workers > 0 and worker_kind == "processes"
        shares_memory = processes and cache is not None and cache.kind == "ram"
        self._start_method = _forking(workers) if shares_memory else None
        self._steps = Steps(
            Pictures(images, exif=exif, scaled=scaled_decoding, cache=cache),
            crops,
            ImageOrder(len(crops), seed),
            self.images_per_batch,
            crops_per_image,
            size_at or _Constant(image_size),
            cut_on,
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
        loaded: Iterator[Batch | Failure]
        if self.workers == 0:
            loaded = map(self._load, range(start, stop))
        elif self.worker_kind == "threads":
            loaded = self._threads(range(start, stop))
        else:
            loaded = self._processes(range(start, stop))
        try:
            for batch in loaded:
                if isinstance(batch, Failure):
                    raise InputError(batch.message)
                for skip in batch.unreadable:
                    if skip.id not in self.unreadable:
                        self.unreadable[skip.id] = skip
                        logger.warning("%s cannot be read (%s); it is left out", *skip)
                        check_unreadable_share(list(self.unreadable.values()), self.images)
                yield batch
        finally:  # workers end here, not when whoever keeps an error lets go of it
            if isinstance(loaded, Generator):
                loaded.close()

    def _load(self, step: int) -> Batch | Failure:
        batch = self._steps[step]
        return batch.pin_memory() if isinstance(batch, Batch) and cuda.is_available() else batch

    def _threads(self, steps: range) -> Iterator[Batch | Failure]:
        """The batches in order, each thread up to two ahead."""
        with workers(self.workers) as pool:
            begun = (pool.submit(self._load, step) for step in steps)
            yield from ahead(begun, 2 * self.workers)

    def _processes(self, steps: range) -> Iterator[Batch | Failure]:
        yield from DataLoader(
            self._steps,
            batch_size=None,
            sampler=steps,
            num_workers=min(self.workers, len(steps)),
            worker_init_fn=_one_thread,
            multiprocessing_context=self._start_method,
            pin_memory=cuda.is_available(),
        )


class SoftLabelLoader(Loader):
    """Batches with stored soft labels, for any training loop.

    Iterating gives one pass over the images, the next pass each time it is completed; `epoch` may
    be set to continue. Passes have one length, so one may end a few images before or after the
    last visit of an image; none is left out. ``images`` is a folder or a source, ``store`` a path
    or an open store, ``regions`` FerKD's calibration (None: the labels as they are) and ``mix`` a
    mixing applied to each batch (on uint8 images). With ``cut_on`` "device" a batch's images are
    had by ``batch.to(device, non_blocking=True).cut()``; to mix them is then for the caller.
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
        cut_on: CutOn = "workers",
        worker_kind: WorkerKind = "threads",
    ) -> None:
        mix = mix or Mix()
        if cut_on == "device" and mix.kind != "none":
            raise InputError(
                f"mix {mix.kind} needs the crops, which cut_on device leaves uncut; mix them after "
                "Batch.cut, or use cut_on workers"
            )
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
            cut_on=cut_on,
            worker_kind=worker_kind,
        )
        self.mining = crops.mining
        self.epoch = 0
        self._mix, self._seed = mix, seed

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
                in_place=True,
            )
            yield replace(batch, images=images, labels=labels)
        self.epoch += 1


@dataclass(frozen=True)
class _Constant:
    """The same size at every step (a function of its own could not be sent to a worker)."""

    size: int

    def __call__(self, step: int) -> int:
        return self.size


def _forking(workers: int) -> str:
    """The way to start workers that share this process's memory."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"data.cache ram with {workers} worker processes needs processes that share memory, "
            "which this system does not have; use worker_kind threads or data.cache: disk"
        )
    return "fork"


def _one_thread(worker: int) -> None:
    """Workers are the parallelism; threads inside each would only fight over the cores."""
    cv2.setNumThreads(0)
