"""What our loader is compared with: the usual way, FKD's way after its description, and the floor.

All are written here and show the images of `ImageOrder`, as our loader does, so that the sides of
a turn decode the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F

from ferkd.crops import cut
from ferkd.images import ImageSource, decode
from ferkd.loading.order import ImageOrder
from ferkd.models.student import IMAGENET_MEAN, IMAGENET_STD
from ferkd.store import LabelStore


class Rows(Sampler[list[int]]):
    """The images of steps ``start`` .. ``stop`` - 1, ``count`` at each."""

    def __init__(self, order: ImageOrder, count: int, start: int, stop: int) -> None:
        self._order, self._count, self._steps = order, count, range(start, stop)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            yield self._order.at(step * self._count, self._count)[0].tolist()


def usual(folder: str | Path, size: int) -> ImageFolder:
    """torchvision's ImageFolder with the usual augmentation, one crop of an image per decode."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return ImageFolder(str(folder), transform)


class FkdStyle(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images with ``m`` of their stored crops, as the FKD paper and its label files describe it.

    Each image has a file of its own with the coordinates, flips and top-k labels of all its
    crops, which is read whole; the image is decoded by Pillow; each crop is cut, resized, flipped,
    made a tensor and normalised apart. What FKD does to labels on the device is left out.
    """

    def __init__(
        self, images: Sequence[str | Path], labels: Sequence[Path], m: int, size: int
    ) -> None:
        self._images, self._labels, self._m, self._size = images, labels, m, size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        coordinates, flips, labels = torch.load(self._labels[row])
        with open(self._images[row], "rb") as file:
            image = Image.open(file).convert("RGB")
        width, height = image.size
        chosen = torch.randperm(len(flips))[: self._m]
        crops = []
        for crop in chosen:
            box = coordinates[crop] * torch.tensor([height, width, height, width])
            top, left, box_height, box_width = (round(float(v)) for v in box)
            shown = F.resized_crop(
                image, top, left, box_height, box_width, [self._size, self._size]
            )
            if flips[crop]:
                shown = F.hflip(shown)
            pixels = F.normalize(F.to_tensor(shown), list(IMAGENET_MEAN), list(IMAGENET_STD))
            crops.append(pixels)
        targets = torch.full((len(chosen),), row)
        return torch.stack(crops), labels[chosen], targets


def joined(images: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of the crops of several images: [B, 3, S, S], [B, 2, k] and [B]."""
    pixels, labels, targets = zip(*images, strict=True)
    return torch.cat(pixels), torch.cat(labels), torch.cat(targets)


class Floor(Dataset[int]):
    """A step's images decoded, and with ``store`` their crops cut too; nothing else.

    ``__getitem__`` takes the rows of a step and returns the number of crops, so that no pixels
    travel between processes. Decoding is OpenCV's of the whole image, as our loader does it where
    it does not decode at a smaller scale.
    """

    def __init__(
        self, source: ImageSource, m: int, size: int, store: LabelStore | None = None
    ) -> None:
        self._source, self._m, self._size = source, m, size
        self._boxes = self._flips = None
        if store is not None:
            every = np.arange(len(store))[:, None]
            self._boxes = store.boxes(every, np.arange(store.crops_per_image))
            self._flips = store.flips(every, np.arange(store.crops_per_image))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: list[int]) -> int:
        count = len(rows) * self._m
        if self._boxes is None or self._flips is None:
            for row in rows:
                cv2.imdecode(np.frombuffer(self._source.read(row), np.uint8), cv2.IMREAD_COLOR_RGB)
            return count
        out = np.empty((count, self._size, self._size, 3), np.uint8)
        for i, row in enumerate(rows):
            pixels = decode(self._source.read(row))
            for c in range(self._m):
                crop = c % self._boxes.shape[1]
                box, flip = self._boxes[row, crop], bool(self._flips[row, crop])
                cut(pixels, box, flip, self._size, out=out[i * self._m + c])
        return count


def one_thread_worker(worker: int) -> None:
    """Workers are the parallelism, on all sides."""
    cv2.setNumThreads(0)


def loaded(dataset: Dataset[object], rows: Rows, workers: int, kind: str) -> DataLoader[object]:
    """A DataLoader over the steps of ``rows``; ``kind``: usual, fkd or floor, one item a step."""
    if kind == "floor":  # a whole step is one item
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=rows,
            num_workers=workers,
            worker_init_fn=one_thread_worker,
        )
    return DataLoader(
        dataset,
        batch_sampler=rows,
        num_workers=workers,
        collate_fn=joined if kind == "fkd" else None,  # type: ignore[arg-type]
        worker_init_fn=one_thread_worker,
    )
