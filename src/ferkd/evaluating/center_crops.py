"""The central crops of images, in batches, for measures that see every image once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.crops import center_box, cut
from ferkd.images import (
    ImageSource,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
    named,
)
from ferkd.system.distributed import Ranks, gathered
from ferkd.system.threads import workers as worker_threads

CACHE_BYTES = 1 << 30  # central crops that take less are kept in memory between evaluations
CHECKED = 2000  # images that a check looks at where they are not kept
_CHECK_BATCH = 64

log = logging.getLogger("ferkd")


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
        parts = (places[c.start : c.stop] for c in chunks(len(places), batch_size))
        if self.workers == 0:
            for rows in parts:
                yield from self._collect(rows, map(self._crop, rows))
            return
        with worker_threads(self.workers) as pool:
            # One batch ahead, so that decoding goes on while the model works.
            ahead = ((rows, pool.map(self._crop, rows)) for rows in parts)
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


def chunks(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))
