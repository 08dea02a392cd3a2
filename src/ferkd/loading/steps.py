"""The batch of a step, from reading its images to their crops and labels: the workers' part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ferkd.crops import cut, cut_scaled, largest_reduction
from ferkd.crops.device import Decoded, RawImages, raw_images
from ferkd.images import Picture, Pictures, Unreadable, UnreadableImage, named
from ferkd.loading.batch import Batch
from ferkd.loading.crop_sources import Chosen, CropSource, Placed
from ferkd.loading.order import ImageOrder
from ferkd.system.distributed import Ranks
from ferkd.system.errors import InputError

CutOn = Literal["workers", "device"]

_GROUP = 8  # images held at a time: a JPEG's bytes, the pixels of other kinds


@dataclass(frozen=True)
class Failure:
    """What a worker says of a batch that bad input kept it from making."""

    message: str


class Steps(Dataset["Batch | Failure"]):
    """The batch of each step; what the workers run.

    A step shows ``m`` crops of each of ``images_per_batch`` images, of the side ``size_at(step)``.
    ``cut_on`` "device" leaves the crops uncut, in `Batch.raw`. Of several processes each gets its
    ``ranks``' part of the images of every step.
    """

    ranks = Ranks()

    def __init__(
        self,
        pictures: Pictures,
        crops: CropSource,
        order: ImageOrder,
        images_per_batch: int,
        m: int,
        size_at: Callable[[int], int],
        cut_on: CutOn = "workers",
    ) -> None:
        self.pictures, self.crops, self.order = pictures, crops, order
        self.images_per_batch, self.m, self.size_at = images_per_batch, m, size_at
        self.cut_on = cut_on
        self._checked = np.zeros(len(crops), bool)  # images compared with the labelled ones

    def of(self, ranks: Ranks) -> Steps:
        """The same steps, as one of several processes sees them."""
        part = copy.copy(self)
        part.ranks = ranks
        return part

    def __getitem__(self, step: int) -> Batch | Failure:
        try:
            return self._batch(step)
        except InputError as error:  # as a value: a worker's exception would arrive as a traceback
            return Failure(str(error))

    def _batch(self, step: int) -> Batch:
        m, size = self.m, self.size_at(step)
        mine = self.ranks.part(self.images_per_batch)
        count = mine.stop - mine.start
        rows, visits = self.order.at(step * self.images_per_batch + mine.start, count)
        sizes = np.ones((count, 2), np.int64)
        placed = Placed(np.zeros((count, m, 4), np.int32), np.zeros((count, m), bool))
        images_of = _Whole if self.cut_on == "device" else _Cut
        shown = _Shown(
            rows,
            visits,
            self.crops.choose(rows, visits, m),
            sizes,
            placed,
            images_of(placed, sizes, size),
        )
        for start in range(0, count, _GROUP):
            self._show(shown, slice(start, min(count, start + _GROUP)))
        chosen = shown.chosen
        if shown.unreadable:  # the stand-ins have targets of their own
            chosen = self.crops.choose(rows, visits, m)
        labels, regions = self.crops.labels(chosen, shown.placed, shown.sizes)
        features = self.crops.features(chosen)
        images, raw = shown.images.finish()
        return Batch(
            images=images,
            labels=labels,
            targets=torch.from_numpy(np.repeat(chosen.targets, m)),
            rows=torch.from_numpy(np.repeat(rows, m)),
            crops=torch.from_numpy(chosen.crops.reshape(-1)),
            regions=None if regions is None else torch.from_numpy(regions.reshape(-1)),
            unreadable=tuple(shown.unreadable),
            raw=raw,
            features=None if features is None else torch.from_numpy(features),
        )

    def _show(self, shown: _Shown, group: slice) -> None:
        """Fill the rows of ``group``: read the images, place their crops together, decode them."""
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
                row = int(shown.rows[i])
                if not self._checked[row]:  # once: hashing each time costs a tenth
                    self.crops.check(row, picture)
                    self._checked[row] = True
                failed = self._decode(shown, i, picture)
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

    def _decode(self, shown: _Shown, i: int, picture: Picture) -> Unreadable | None:
        """Decode the i-th image and take its crops, unless it turns out unreadable."""
        reduction = 1
        if self.pictures.scaled:
            reduction = largest_reduction(shown.placed.boxes[i], shown.images.size)
        try:
            row = int(shown.rows[i])
            with named(lambda: self.crops.image(row)[1], self.pictures.source.name):
                image = Decoded(*picture.pixels(reduction))
        except UnreadableImage as error:
            return self._unreadable(self.crops.image(int(shown.rows[i]))[1], error)
        shown.images.add(i, image)
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
            failed = self._decode(shown, i, picture)
            if failed is None:
                return
            unreadable = failed
        raise InputError(f"no image of {self.pictures.source.name} can be read; check the files")


class _Images(Protocol):
    """What becomes of a batch's decoded images, given where their crops lie: ``placed`` and the
    whole images' ``sizes`` [n, 2], both filled by the time an image is added; ``size`` is the
    crops' side."""

    size: int

    def __init__(self, placed: Placed, sizes: NDArray[np.int64], size: int) -> None: ...

    def add(self, i: int, image: Decoded) -> None:
        """Take the i-th image."""

    def finish(self) -> tuple[Tensor, RawImages | None]:
        """The batch's ``images`` and ``raw``."""


class _Cut:
    """The crops, cut here, one image after the other."""

    def __init__(self, placed: Placed, sizes: NDArray[np.int64], size: int) -> None:
        self.placed, self.sizes, self.size = placed, sizes, size
        count, self.m = placed.flips.shape
        self.pixels = _shared(count * self.m * size * size * 3).view(-1, size, size, 3)

    def add(self, i: int, image: Decoded) -> None:
        full = int(self.sizes[i, 0]), int(self.sizes[i, 1])
        out = self.pixels[i * self.m : (i + 1) * self.m].numpy()
        for box, flip, crop in zip(self.placed.boxes[i], self.placed.flips[i], out, strict=True):
            if image.scale is None:
                cut(image.pixels, box, bool(flip), self.size, out=crop)
            else:
                cut_scaled(image.pixels, full, image.scale, box, bool(flip), self.size, out=crop)

    def finish(self) -> tuple[Tensor, None]:
        return self.pixels.permute(0, 3, 1, 2), None


class _Whole:
    """The decoded images, kept whole until all are there and the room for them is known.

    They are in memory twice while they are put together.
    """

    def __init__(self, placed: Placed, sizes: NDArray[np.int64], size: int) -> None:
        self.placed, self.sizes, self.size = placed, sizes, size
        self.images: dict[int, Decoded] = {}

    def add(self, i: int, image: Decoded) -> None:
        self.images[i] = image

    def finish(self) -> tuple[Tensor, RawImages]:
        images = [self.images[i] for i in range(len(self.sizes))]
        boxes, flips = self.placed
        raw = raw_images(images, self.sizes, boxes, flips, self.size, room=_shared)
        return torch.empty((flips.size, 3, 0, 0), dtype=torch.uint8), raw


@dataclass
class _Shown:
    """The n images of a batch as they are worked out, in place: rows and visits [n], what was
    chosen, sizes [n, 2], boxes [n, m, 4] and flips [n, m], and the images themselves."""

    rows: NDArray[np.int64]
    visits: NDArray[np.int64]
    chosen: Chosen
    sizes: NDArray[np.int64]
    placed: Placed
    images: _Images
    unreadable: list[Unreadable] = field(default_factory=list)


def _shared(count: int) -> Tensor:
    """Room for ``count`` bytes; in a worker, in memory that the training process can read."""
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    # As PyTorch's own collation does: writing into shared memory spares copying the batch there.
    storage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count)
