"""Multi-crop batches: each image is decoded once a visit and shows m of its crops.

A loader is addressed by step: the batch of a step depends on the images, the labels, the settings
and the seed alone, whatever the number of workers and wherever training was continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ferkd.crops import CUT_RULE, CropDistribution, cut, random_boxes
from ferkd.errors import InputError
from ferkd.images import ImageSource, decode, fingerprint, open_images
from ferkd.images.decode import UnreadableImage
from ferkd.labels import LabelStore, SoftLabels
from ferkd.mixing import Mix
from ferkd.regions import Mining, Region, Regions, calibrate, mine
from ferkd.schedule import ImageOrder, draw_crops

_CHECKED = 16  # images whose content is compared with the store's fingerprints on opening


@dataclass(frozen=True)
class Batch:
    """B = n * m crops; the m crops of an image are consecutive rows.

    ``images`` uint8 [B, 3, S, S], channels last in memory; ``labels`` the calibrated soft labels,
    None for hard-label training; ``targets`` int64 [B], -1 for none; ``rows`` int64 [B], the
    image's place in the loader's images; ``crops`` int64 [B], its crop number; ``regions`` int8
    [B] or None.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by PyTorch's DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def _map(self, function) -> Batch:  # type: ignore[no-untyped-def]
        return Batch(
            function(self.images),
            None if self.labels is None else self.labels.map(function),
            function(self.targets),
            function(self.rows),
            function(self.crops),
            None if self.regions is None else function(self.regions),
        )


class CropSource(Protocol):
    """Which crops images show, and what is known about them."""

    def __len__(self) -> int:
        """The number of images."""

    def image(self, row: int) -> tuple[int, str]:
        """The image's place in the image source, and its id."""

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        """What the images ``rows`` show at their visits."""


@dataclass(frozen=True)
class Chosen:
    """Crop numbers [n, m]; boxes [n, m, 4] and flips [n, m] where the labels fix them."""

    crops: NDArray[np.int64]
    targets: NDArray[np.int64]
    boxes: NDArray[np.int32] | None = None
    flips: NDArray[np.bool_] | None = None
    sizes: NDArray[np.int64] | None = None
    labels: SoftLabels | None = None
    regions: NDArray[np.int8] | None = None


class FreshCrops:
    """New random resized crops at every visit: ordinary training, without stored labels."""

    def __init__(
        self, images: ImageSource, *, distribution: CropDistribution | None = None, seed: int = 0
    ) -> None:
        self._images = images
        self.distribution = distribution or CropDistribution()
        self.seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def image(self, row: int) -> tuple[int, str]:
        return row, self._images.ids[row]

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        crops = visits[:, None] * m + np.arange(m)
        return Chosen(crops, self._images.targets[rows].astype(np.int64))


class StoredCrops:
    """The crops of a label store, calibrated by regions; discarded crops are never drawn.

    Raises InputError when the store does not belong to these images: an id, the class names or
    the content (of a sample) differ, or the crops were cut by another rule.
    """

    def __init__(
        self,
        images: ImageSource,
        store: LabelStore,
        *,
        regions: Regions | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.seed = store, seed
        self._sources = match(images, store)
        self.mining: Mining | None = mine(store, regions) if regions else None
        self._epsilon = regions.epsilon if regions else 0.0

    def __len__(self) -> int:
        return len(self.store)

    def image(self, row: int) -> tuple[int, str]:
        return int(self._sources[row]), self.store.ids[row]

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        store = self.store
        ids = [store.ids[int(row)] for row in rows]
        if self.mining is None:
            usable = np.ones((len(rows), store.crops_per_image), bool)
        else:
            usable = self.mining.regions[rows] != Region.DISCARDED
        crops = draw_crops(usable, ids, visits, m, self.seed)
        records = store.records(rows[:, None], crops)
        labels = store.decode(records.reshape(-1), np.repeat(rows, m))
        targets = store.images["target"][rows].astype(np.int64)
        regions = None
        if self.mining is not None:
            regions = self.mining.regions[rows[:, None], crops]
            labels = calibrate(
                labels,
                torch.from_numpy(np.repeat(targets, m)),
                torch.from_numpy(regions.reshape(-1)),
                self._epsilon,
            )
        sizes = np.stack([store.images["height"][rows], store.images["width"][rows]], 1)
        return Chosen(
            crops,
            targets,
            records["box"].astype(np.int32),
            store.record.flips(records),
            sizes.astype(np.int64),
            labels,
            regions,
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
        self.images_per_batch = -(-batch_size // crops_per_image)
        self.batch_size = self.images_per_batch * crops_per_image
        self.crops_per_image = crops_per_image
        self.workers = workers
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
        """The batches of steps start .. stop - 1."""
        if start >= stop:
            return
        yield from DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=min(self.workers, stop - start),
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )


class SoftLabelLoader(Loader):
    """Batches with stored soft labels, for any training loop.

    Iterating gives one pass over the images, the next pass each time; `epoch` may be set to
    continue. ``images`` is a folder or a source, ``store`` a path or an open store, ``regions``
    FerKD's calibration (None: the labels as they are) and ``mix`` a mixing applied to each batch
    (on uint8 images).
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
        """The number of batches of the pass that comes next."""
        return self._first(self.epoch + 1) - self._first(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        first, last = self._first(self.epoch), self._first(self.epoch + 1)
        self.epoch += 1
        for step, batch in enumerate(self.batches(first, last), first):
            assert batch.labels is not None
            images, labels = self._mix(
                batch.images,
                batch.labels,
                crops_per_image=self.crops_per_image,
                generator=np.random.default_rng([self._seed, step]),
            )
            yield replace(batch, images=images, labels=labels)

    def _first(self, epoch: int) -> int:
        return -(-epoch * self.images // self.images_per_batch)


def match(images: ImageSource, store: LabelStore) -> NDArray[np.int64]:
    """The place in ``images`` of each image of ``store``, int64 [N]; raises InputError."""
    rule = store.settings.crops.rule
    if rule != CUT_RULE:
        raise InputError(
            f"the labels of {store.path} were made with the crop rule {rule!r}, this release cuts "
            f"by {CUT_RULE!r}; label again, or use the release that made them"
        )
    if images.class_names and store.settings.targets and images.class_names != store.class_names:
        raise InputError(
            f"the classes of {images.name} ({_some(images.class_names)}) are not those of the "
            f"labels {store.path} ({_some(store.class_names)}); use the images that were labelled"
        )
    places = {image_id: place for place, image_id in enumerate(images.ids)}
    sources = np.array([places.get(image_id, -1) for image_id in store.ids], np.int64)
    missing = np.flatnonzero(sources < 0)
    if len(missing):
        raise InputError(
            f"{len(missing)} of the {len(store)} images of the labels {store.path} are not in "
            f"{images.name} (first: {store.ids[int(missing[0])]}); the labels belong to another "
            "image set: use the images that were labelled, or label these"
        )
    sample = np.unique(np.linspace(0, len(store) - 1, _CHECKED).astype(int)) if len(store) else []
    for row in sample:
        if fingerprint(images.read(int(sources[row]))) != int(store.images["fingerprint"][row]):
            raise InputError(
                f"{store.ids[int(row)]} in {images.name} is not the file that was labelled for "
                f"{store.path} (its content differs); use the labelled images, or label these"
            )
    return sources


class _Steps(Dataset[Batch]):
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
        self.images_per_batch, self.m, self.size, self.exif = images_per_batch, m, size, exif

    def __getitem__(self, step: int) -> Batch:
        count, m, size = self.images_per_batch, self.m, self.size
        rows, visits = self.order.at(step * count, count)
        chosen = self.source.choose(rows, visits, m)
        pixels = np.empty((count * m, size, size, 3), np.uint8)
        for i in range(count):
            place, image_id = self.source.image(int(rows[i]))
            image = self._decoded(place, image_id, chosen, i)
            boxes, flips = self._boxes(image, image_id, chosen, i)
            for c in range(m):
                cut(image, boxes[c], bool(flips[c]), size, out=pixels[i * m + c])
        return Batch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=chosen.labels,
            targets=torch.from_numpy(np.repeat(chosen.targets, m)),
            rows=torch.from_numpy(np.repeat(rows, m)),
            crops=torch.from_numpy(chosen.crops.reshape(-1)),
            regions=None
            if chosen.regions is None
            else torch.from_numpy(chosen.regions.reshape(-1)),
        )

    def _decoded(self, place: int, image_id: str, chosen: Chosen, i: int) -> NDArray[np.uint8]:
        try:
            image = decode(self.images.read(place), exif=self.exif)
        except UnreadableImage as error:
            raise InputError(
                f"{image_id} of {self.images.name} cannot be read ({error}); repair or remove it"
            ) from None
        if chosen.sizes is not None and image.shape[:2] != tuple(chosen.sizes[i]):
            raise InputError(
                f"{image_id} of {self.images.name} is {image.shape[0]}x{image.shape[1]} pixels, "
                f"but was labelled at {chosen.sizes[i][0]}x{chosen.sizes[i][1]}; use the images "
                "that were labelled"
            )
        return image

    def _boxes(
        self, image: NDArray[np.uint8], image_id: str, chosen: Chosen, i: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        if chosen.boxes is not None and chosen.flips is not None:
            return chosen.boxes[i], chosen.flips[i]
        assert isinstance(self.source, FreshCrops)
        boxes, flips = random_boxes(
            [image.shape[0]],
            [image.shape[1]],
            crops=self.m,
            seed=self.source.seed,
            ids=[image_id],
            distribution=self.source.distribution,
            first=int(chosen.crops[i, 0]),
        )
        return boxes[0], flips[0]


def _one_thread(worker: int) -> None:
    """Workers are the parallelism; threads inside each would only fight over the cores."""
    cv2.setNumThreads(0)


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
