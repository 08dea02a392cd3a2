"""Multi-crop batches: each image is decoded once a visit and shows m of its crops.

A loader is addressed by step: the batch of a step depends on the images, the labels, the settings
and the seed alone, whatever the number of workers and wherever training was continued. Of several
processes each gets its part of that batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
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
from ferkd.loading.processes import WorkerKind, check_open_files, forking, one_thread
from ferkd.loading.steps import CutOn, Failure, Steps
from ferkd.store import LabelStore
from ferkd.system.distributed import Ranks, find_ranks
from ferkd.system.errors import InputError
from ferkd.system.settings import check_least
from ferkd.system.threads import ahead, workers

logger = logging.getLogger("ferkd")


class Loader:
    """Batches by step: ``batch_size`` crops, ``crops_per_image`` from each image.

    The images follow each other in one endless shuffled stream (see `ImageOrder`), so every batch
    is full.

    - ``batch_size`` counts the crops of all processes together. A step shows
      ceil(batch_size / crops_per_image) images. They are divided among the processes whole, so
      each process gets as many steps.
    - ``rank`` and ``world_size`` are those of the process group unless given.
    - ``order`` is drawn from ``seed`` unless given.
    - ``workers`` 0 loads in this thread.
    - ``worker_kind`` "threads" costs nothing to start and has nothing to hand over: decoding and
      cutting release Python's lock. "processes" is for an image source that computes in Python.
    - ``size_at`` gives the side of a step's crops where it is not always ``image_size``.
    - ``scaled_decoding`` decodes a large JPEG at a half, a quarter or an eighth where all its crops
      are cut smaller still (see `ferkd.crops.cut_scaled`).
    - ``cache`` keeps decoded images.
    - ``cut_on`` "device" leaves the crops to be cut where the batch is sent (`Batch.cut`). Batches
      then hold whole images.
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
        rank: int | None = None,
        world_size: int | None = None,
        order: ImageOrder | None = None,
    ) -> None:
        check_least(
            1, batch_size=batch_size, crops_per_image=crops_per_image, image_size=image_size
        )
        if workers < 0:
            raise InputError(f"workers is {workers}; it must be at least 0 (0: this process)")
        if cut_on not in get_args(CutOn):
            raise InputError(f"cut_on is {cut_on!r}; use workers or device")
        self.images_per_batch = -(-batch_size // crops_per_image)
        self.batch_size = self.images_per_batch * crops_per_image
        self.crops_per_image = crops_per_image
        if self.batch_size != batch_size:
            logger.warning(
                "batches have %d crops, not %d: they show %d whole images of %d crops",
                self.batch_size,
                batch_size,
                self.images_per_batch,
                crops_per_image,
            )
        self._rank, self._world_size = rank, world_size
        if rank is not None or world_size is not None:
            _ = self.ranks  # what is wrong with them is said now
        if worker_kind not in get_args(WorkerKind):
            raise InputError(f"worker_kind is {worker_kind!r}; use threads or processes")
        self.workers, self.worker_kind = workers, worker_kind
        self.unreadable: dict[str, Unreadable] = {}
        self.cache = cache
        processes = workers > 0 and worker_kind == "processes"
        shares_memory = processes and cache is not None and cache.kind == "ram"
        self._start_method = forking(workers) if shares_memory else None
        self._steps = Steps(
            Pictures(images, exif=exif, scaled=scaled_decoding, cache=cache),
            crops,
            order or ImageOrder(len(crops), seed),
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

    @property
    def ranks(self) -> Ranks:
        """Which part of a batch this process gets. Raises InputError where none fits.

        Asked for anew at each use: a loader may be made before the process group is.
        """
        found = find_ranks(self._rank, self._world_size)
        if over := self.images_per_batch % found.world_size:
            below = (self.images_per_batch - over) * self.crops_per_image
            above = below + found.world_size * self.crops_per_image
            fitting = f"{below} or {above}" if below else f"{above}"
            raise InputError(
                f"batch_size {self.batch_size} with {self.crops_per_image} crops an image shows "
                f"{self.images_per_batch} images, which {found.world_size} processes cannot share "
                f"evenly; use batch_size {fitting} (it counts the crops of all processes)"
            )
        return found

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start .. stop - 1, of several processes this one's part of each.

        Raises InputError for an image that was labelled but cannot be read now, and when more
        than 1 % of the images of ordinary training cannot be read; up to then the next image
        stands in for each, and `unreadable` lists them.
        """
        if start >= stop:
            return
        loaded: Iterator[Batch | Failure]
        steps = self._steps.of(self.ranks)
        if self.workers == 0:
            loaded = (_load(steps, step) for step in range(start, stop))
        elif self.worker_kind == "threads":
            loaded = self._threads(steps, range(start, stop))
        else:
            loaded = self._processes(steps, range(start, stop))
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

    def _threads(self, steps: Steps, numbers: range) -> Iterator[Batch | Failure]:
        """The batches in order, each thread up to two ahead."""
        with workers(self.workers) as pool:
            begun = (pool.submit(_load, steps, step) for step in numbers)
            yield from ahead(begun, 2 * self.workers)

    def _processes(self, steps: Steps, numbers: range) -> Iterator[Batch | Failure]:
        count = min(self.workers, len(numbers))
        check_open_files(count)
        yield from DataLoader(
            steps,
            batch_size=None,
            sampler=numbers,
            num_workers=count,
            worker_init_fn=one_thread,
            multiprocessing_context=self._start_method,
            generator=torch.Generator(),  # else they draw from the caller's
            pin_memory=cuda.is_available(),
        )


class SoftLabelLoader(Loader):
    """Batches with stored soft labels, for any training loop.

    Iterating gives one pass over the images. Each iteration begins the next pass, also where the
    one before was broken off, or the pass that :meth:`set_epoch` names. :meth:`state_dict` and
    :meth:`load_state_dict` continue a pass. Passes have one length, so one may end a few images
    before or after the last visit of an image; none is left out.

    - ``images`` is a folder or a source, ``store`` a path or an open store.
    - ``regions`` is FerKD's calibration; None takes the labels as they are.
    - ``mix`` mixes each batch, on uint8 images. Across images it mixes what one process has.
    - With ``cut_on`` "device", ``batch.to(device, non_blocking=True).cut()`` makes the images of a
      batch. Mixing is then the caller's.
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
        rank: int | None = None,
        world_size: int | None = None,
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
            exif=opened.geometry.images.exif,
            scaled_decoding=scaled_decoding,
            cache=cache,
            cut_on=cut_on,
            worker_kind=worker_kind,
            rank=rank,
            world_size=world_size,
        )
        self.mining = crops.mining
        self.num_classes, self.class_names = opened.num_classes, opened.class_names
        self._mix, self._seed = mix, seed
        self._next = self._at = (0, 0)  # pass and batch: that iteration begins with; under way

    def __len__(self) -> int:
        """The number of batches of a pass: the nearest to one visit of each image, at least 1."""
        return max(1, round(self.steps_per_pass))

    def __iter__(self) -> Iterator[Batch]:
        self._at = epoch, done = self._next
        self._next = epoch + 1, 0
        first = epoch * len(self)
        for step, batch in enumerate(self.batches(first + done, first + len(self)), first + done):
            self._at = epoch, step + 1 - first
            yield self._mixed(step, batch)

    def _mixed(self, step: int, batch: Batch) -> Batch:
        """The batch as it is mixed at a step: drawn for all processes, of which this has a part."""
        ranks = self.ranks
        drawn = self._mix.draw(
            self.batch_size,
            *batch.images.shape[2:],
            crops_per_image=self.crops_per_image,
            generator=np.random.default_rng([self._seed, step]),
            ranks=ranks.world_size,
        )
        if drawn is None:
            return batch
        assert batch.labels is not None
        drawn = drawn.of_rank(ranks.rank, ranks.world_size)
        images = drawn.images(batch.images, in_place=True)
        return replace(batch, images=images, labels=drawn.labels(batch.labels))

    @property
    def epoch(self) -> int:
        """The pass under way, from 0; before it begins and once all of it was given, the next."""
        return self._place()[0]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration show pass ``epoch``, from 0.

        From its beginning; after :meth:`load_state_dict` with a state of that very pass, from
        there.
        """
        if epoch < 0:
            raise InputError(f"epoch is {epoch}; passes count from 0")
        if self._next[0] != epoch:
            self._next = epoch, 0
        self._at = self._next

    def state_dict(self) -> dict[str, Any]:
        """Where iteration stands: the pass, the batches given of it, and what both count.

        It fits any number of processes. Batches that others fetched ahead of their use count.
        """
        epoch, batch = self._place()
        return {"epoch": epoch, "batch": batch, **self._counting()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration give what was left of the pass, and later ones the next passes.

        Raises InputError for the state of a loader that counts otherwise.
        """
        for name, ours in self._counting().items():
            theirs = state.get(name)
            if theirs != ours:
                raise InputError(
                    f"the state is of a loader whose {name} is {theirs}, this one's is {ours}; "
                    "make the loader as it was, or begin a pass by set_epoch"
                )
        self._next = self._at = int(state["epoch"]), int(state["batch"])

    def _counting(self) -> dict[str, int]:
        return {
            "images": self.images,
            "batch_size": self.batch_size,
            "crops_per_image": self.crops_per_image,
            "seed": self._seed,
        }

    def _place(self) -> tuple[int, int]:
        """The pass and the batch that come next if iteration goes on."""
        epoch, batch = self._at
        return (epoch, batch) if batch < len(self) else (epoch + 1, 0)


@dataclass(frozen=True)
class _Constant:
    """The same size at every step (a function of its own could not be sent to a worker)."""

    size: int

    def __call__(self, step: int) -> int:
        return self.size


def _load(steps: Steps, step: int) -> Batch | Failure:
    batch = steps[step]
    return batch.pin_memory() if isinstance(batch, Batch) and cuda.is_available() else batch
