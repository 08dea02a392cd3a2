"""Images in, records out: decoding and cutting run ahead of whoever answers to the crops.

Within a part, crops of many images share the teacher's batches; a batch never crosses into another
part, so a store's bytes do not depend on where a job was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.crops import cut
from ferkd.images import (
    ImageSource,
    Unreadable,
    UnreadableImage,
    decode,
    fingerprint,
    named,
)
from ferkd.labelling.agreement import Agreement
from ferkd.labelling.answering import Answers
from ferkd.labelling.relabelling import ShownCrops
from ferkd.store import manifest as manifests
from ferkd.store.derive import chunks
from ferkd.store.features import FeatureFormat
from ferkd.store.reader import IMAGE
from ferkd.store.records import MAX_SIDE, RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.system.threads import ahead


class _Decoded(NamedTuple):
    place: int  # among the images offered
    pixels: NDArray[np.uint8]
    fingerprint: int


class _Segment(NamedTuple):
    """Some crops of one image, to be cut into a batch."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    target: int
    first: bool  # whether it begins its image


class _Batch(NamedTuple):
    """Crops of several images: uint8 [B, 3, S, S] by size S, and what their records need, [B]."""

    images: dict[int, Tensor]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    targets: NDArray[np.int64]
    images_begun: int  # of its images those whose first crop is here


@dataclass
class Part:
    """The labels of one part as they grow."""

    dtype: np.dtype[Any]
    crops: int
    ids: list[str] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    boxes: list[NDArray[np.integer]] = field(default_factory=list)
    flips: list[NDArray[np.bool_]] = field(default_factory=list)
    records: list[NDArray[Any]] = field(default_factory=list)
    skipped: list[Unreadable] = field(default_factory=list)

    def table(self) -> NDArray[Any]:
        return np.array(self.rows, IMAGE)

    def joined(self) -> tuple[NDArray[np.integer], NDArray[np.bool_], NDArray[Any]]:
        """Boxes [n, crops, 4], flips [n, crops] and records [n, crops] of the n images."""
        shape = len(self.ids), self.crops
        boxes = np.concatenate([np.zeros((0, 4), np.int32), *self.boxes]).reshape(*shape, 4)
        flips = np.concatenate([np.zeros(0, bool), *self.flips]).reshape(shape)
        return boxes, flips, np.concatenate([np.zeros(0, self.dtype), *self.records]).reshape(shape)


class Labeller:
    """Images in, records out; decoding and cutting run ahead of the teacher in threads.

    At most ``2 * workers`` decoded images and 2 batches of crops are held at a time.
    """

    def __init__(
        self,
        source: ImageSource,
        teacher: Answers,
        settings: manifests.Settings,
        shown: ShownCrops,
        batch_size: int,
        workers: int,
        pool: ThreadPoolExecutor,
        agreement: Agreement | None = None,
    ) -> None:
        self._agreement = agreement
        self._source, self._teacher, self._settings = source, teacher, settings
        self._shown = shown
        self._batch_size, self._workers, self._pool = batch_size, workers, pool
        form = settings.record or settings.vectors
        assert form is not None
        self._format: RecordFormat | FeatureFormat = form.format

    def label(self, members: range, tell: Callable[[int], None]) -> Part:
        """Label the images at these places; ``tell`` hears after each batch how many crops."""
        part = Part(self._format.dtype, self._shown.new)
        crops = 0
        for batch in self._batches(self._segments(part, members)):
            logits = self._teacher(batch.images)
            boxes, flips, true = self._shown.recorded(batch.boxes, batch.flips, batch.targets)
            targets = torch.from_numpy(true).to(logits.device)
            if self._agreement is not None:
                self._agreement.add(true, logits.argmax(1).cpu().numpy(), batch.images_begun)
            for some in chunks(len(logits), logits.shape[1]):  # the cells of maps are many
                part.records.append(self._encoded(logits[some], targets[some]))
            part.boxes.append(boxes)
            part.flips.append(flips)
            crops += len(boxes)
            tell(crops)
        return part

    def _encoded(self, answers: Tensor, targets: Tensor) -> NDArray[Any]:
        """The records of logits, or of features, [B, n]."""
        if isinstance(self._format, FeatureFormat):
            return self._format.encode(answers.cpu().numpy())
        return self._format.encode(SoftLabels.from_logits(answers, targets, self._format.k))

    def _segments(self, part: Part, members: range) -> Iterator[_Segment]:
        decoding = (self._pool.submit(self._decode, member) for member in members)
        for image in ahead(decoding, 2 * self._workers):
            if isinstance(image, Unreadable):
                part.skipped.append(image)
                continue
            image_id = self._source.ids[image.place]
            height, width = image.pixels.shape[:2]
            boxes, flips = self._shown.draw(image_id, height, width)
            target = int(self._source.targets[image.place])
            part.ids.append(image_id)
            part.rows.append((0, image.fingerprint, target, height, width))
            yield _Segment(image.pixels, boxes, flips, target, True)

    def _decode(self, place: int) -> _Decoded | Unreadable:
        image_id = self._source.ids[place]
        if (reason := self._shown.skipped(image_id)) is not None:
            return Unreadable(image_id, reason)
        data = self._source.read(place)
        try:
            with named(image_id, self._source.name):
                pixels = decode(data, exif=self._settings.images.exif)
        except UnreadableImage as error:
            self._shown.check_left_out(image_id, str(error))
            return Unreadable(image_id, str(error))
        if max(pixels.shape[:2]) > MAX_SIDE:
            return Unreadable(image_id, f"a side is longer than {MAX_SIDE} pixels")
        content = fingerprint(data)
        self._shown.check(image_id, content, *pixels.shape[:2])
        return _Decoded(place, pixels, content)

    def _batches(self, segments: Iterator[_Segment]) -> Iterator[_Batch]:
        return ahead((self._pool.submit(self._cut, g) for g in self._grouped(segments)), 2)

    def _grouped(self, segments: Iterator[_Segment]) -> Iterator[list[_Segment]]:
        """Lists of segments of ``batch_size`` crops together, the last one possibly fewer."""
        group: list[_Segment] = []
        free = self._batch_size
        for segment in segments:
            start, count = 0, len(segment.boxes)
            while start < count:
                stop = min(start + free, count)
                taken = slice(start, stop)
                group.append(
                    segment._replace(
                        boxes=segment.boxes[taken], flips=segment.flips[taken], first=start == 0
                    )
                )
                free -= stop - start
                start = stop
                if not free:
                    yield group
                    group, free = [], self._batch_size
        if group:
            yield group

    def _cut(self, group: list[_Segment]) -> _Batch:
        boxes = np.concatenate([s.boxes for s in group])
        flips = np.concatenate([s.flips for s in group])
        targets = np.repeat([s.target for s in group], [len(s.boxes) for s in group])
        images = {size: self._cut_at(size, group, len(boxes)) for size in self._teacher.sizes}
        begun = sum(s.first for s in group)
        return _Batch(images, boxes, flips, targets.astype(np.int64), begun)

    def _cut_at(self, size: int, group: list[_Segment], count: int) -> Tensor:
        images = np.empty((count, size, size, 3), np.uint8)
        at = 0
        for segment in group:
            for box, flip in zip(segment.boxes, segment.flips, strict=True):
                cut(segment.pixels, box, bool(flip), size, out=images[at])
                at += 1
        return torch.from_numpy(images).permute(0, 3, 1, 2)
