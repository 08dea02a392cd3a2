"""Crops cut on the device: decoded images are sent there whole, and all crops cut in one call.

Workers then only read and decode. The rule is :data:`ferkd.crops.CUT_RULE`'s, by one formula: a
pixel of a crop is the mean of the image over a box, one pixel wide where the crop is sampled
bilinearly, as wide as the reduction where areas are averaged. The mean over a box one pixel wide
between two pixels is their linear interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.system.trees import tree_node

_AT_ONCE = 2**21  # pixels of crops that are worked out at a time
_SLACK = 1e-4  # of a pixel: what rounding may add to the width of a mean


class Decoded(NamedTuple):
    """An image as it was decoded: pixels uint8 [h, w, 3], and how many (down, across) of the whole
    image's pixels lie in one of them, None for the whole image itself."""

    pixels: NDArray[np.uint8]
    scale: tuple[float, float] | None = None


class Run(NamedTuple):
    """Crops that follow each other in the order of cutting, and the pixels, down and across, that
    one pixel of theirs is a mean of at most."""

    crops: int
    down: int
    across: int


@tree_node("runs", "size")
@dataclass(frozen=True)
class RawImages:
    """n decoded images and the boxes of their n * m crops; see :func:`raw_images`.

    ``pixels`` uint8 [T]: the images [h, w, 3] one after the other. ``starts`` int64 [n]: the place
    of each one's first byte. ``sizes`` int64 [n, 2]: its rows and columns. ``scales`` float32
    [n, 2]: how many of the whole image's pixels lie in one of them, down and across. ``boxes``
    int32 [n, m, 4] as (top, left, height, width) in pixels of the whole image; ``flips`` bool
    [n, m]. ``size`` is the crops' side. ``order`` int64 [n * m] is the order of cutting and
    ``runs`` how it is divided, which is decided before anything is sent: asking the device for it
    would mean waiting.
    """

    pixels: Tensor
    starts: Tensor
    sizes: Tensor
    scales: Tensor
    boxes: Tensor
    flips: Tensor
    order: Tensor
    runs: tuple[Run, ...]
    size: int

    def __len__(self) -> int:
        """The number of crops."""
        return self.flips.numel()

    def map(self, function: Callable[[Tensor], Tensor]) -> RawImages:
        """The same with ``function`` applied to every tensor."""
        return replace(
            self,
            pixels=function(self.pixels),
            starts=function(self.starts),
            sizes=function(self.sizes),
            scales=function(self.scales),
            boxes=function(self.boxes),
            flips=function(self.flips),
            order=function(self.order),
        )

    def pin_memory(self) -> RawImages:
        """The images in page-locked memory."""
        return self.map(lambda t: t.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RawImages:
        """The images on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))


def raw_images(
    images: Sequence[Decoded],
    whole: NDArray[np.integer],
    boxes: NDArray[np.int32],
    flips: NDArray[np.bool_],
    size: int,
    *,
    room: Callable[[int], Tensor] | None = None,
) -> RawImages:
    """Put n images and their crops together, copying the pixels.

    ``whole`` int [n, 2]: heights and widths of the whole images; ``boxes`` [n, m, 4] and ``flips``
    [n, m] as in :class:`RawImages`; ``room(T)`` gives the uint8 [T] that the pixels are put into.
    Raises ValueError for a box that does not lie inside its image.
    """
    _check(boxes, whole)
    sizes = np.array([image.pixels.shape[:2] for image in images], np.int64).reshape(-1, 2)
    scales = np.array([image.scale or (1.0, 1.0) for image in images]).reshape(-1, 2)
    stops = np.cumsum(sizes.prod(1) * 3)
    starts = stops - sizes.prod(1) * 3
    total = int(stops[-1]) if len(images) else 0
    pixels = room(total) if room is not None else torch.empty(total, dtype=torch.uint8)
    buffer = pixels.numpy()
    for image, start, stop in zip(images, starts, stops, strict=True):
        buffer[start:stop].reshape(image.pixels.shape)[...] = image.pixels
    order, runs = _plan(boxes, scales, size)
    return RawImages(
        pixels=pixels,
        starts=torch.from_numpy(starts),
        sizes=torch.from_numpy(sizes),
        scales=torch.from_numpy(scales.astype(np.float32)),
        boxes=torch.from_numpy(boxes),
        flips=torch.from_numpy(flips),
        order=torch.from_numpy(order),
        runs=runs,
        size=size,
    )


def cut_batch(raw: RawImages) -> Tensor:
    """All crops, uint8 [n * m, 3, size, size], channels last in memory, on the images' device.

    Crops of whole images are those of :func:`ferkd.crops.cut` up to rounding: within 1 of 255
    levels. Crops of smaller copies are within 3 levels of them on photographs, on average
    (tests/crops/test_device_cuts.py). Nothing waits for the device. Beside the images and the
    result it takes about 60 bytes for each of 2^21 pixels, 120 MB (one crop, if that is larger).
    """
    side = raw.size
    out = raw.pixels.new_empty((len(raw), side, side, 3))
    at_once = max(1, _AT_ONCE // side**2)
    start = 0
    for run in raw.runs:
        for crops in raw.order[start : start + run.crops].split(at_once):
            out.index_copy_(0, crops, _cut(raw, crops, run))
        start += run.crops
    return out.permute(0, 3, 1, 2)


def _cut(raw: RawImages, crops: Tensor, run: Run) -> Tensor:
    """The crops numbered ``crops`` [c], uint8 [c, size, size, 3]."""
    side = raw.size
    images = crops // raw.flips.shape[1]
    boxes, flips = raw.boxes.view(-1, 4)[crops], raw.flips.view(-1)[crops]
    lengths, stored, scales = boxes[:, 2:], raw.sizes[images], raw.scales[images]
    averaged = (lengths.amin(1) >= side) & (lengths.amax(1) >= 2 * side)
    begins, spans = boxes[:, :2] / scales, lengths / scales
    places = torch.arange(side, device=crops.device).expand(len(crops), -1)
    mirrored = torch.where(flips[:, None], side - 1 - places, places)
    rows, down = _means(places, begins[:, 0], spans[:, 0], averaged, stored[:, 0], run.down)
    columns, across = _means(
        mirrored, begins[:, 1], spans[:, 1], averaged, stored[:, 1], run.across
    )
    rows = (raw.starts[images] // 3)[:, None, None] + rows * stored[:, 1, None, None]
    colours = raw.pixels.view(-1, 3)
    total = torch.zeros((len(crops), side, side, 3), device=crops.device)
    for y in range(run.down):
        line = torch.zeros_like(total)
        for x in range(run.across):
            found = colours[rows[:, :, y, None] + columns[:, None, :, x]]
            line.addcmul_(found.float(), across[:, None, :, x, None])
        total.addcmul_(line, down[:, :, y, None, None])
    return total.add_(0.5).to(torch.uint8)


def _means(
    places: Tensor, begin: Tensor, span: Tensor, averaged: Tensor, stored: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Which of an axis's ``stored`` [c] pixels make up the pixels ``places`` [c, S] of the crops.

    The crops lie at ``begin`` [c] and are ``span`` [c] long, in stored pixels. Returns the
    pixels' numbers, int64 [c, S, count], and their shares, float32 [c, S, count], of sum 1.
    """
    step = (span / places.shape[1])[:, None]
    width = torch.where(averaged[:, None], step.clamp_min(1.0), 1.0)
    # Counted from the first pixel of the crop: small numbers keep the fractions exact.
    first = begin.floor()
    low = (begin - first)[:, None] + (places + 0.5) * step - width / 2
    pixels = low.floor()[..., None] + torch.arange(count, device=places.device)
    low, width = low[..., None], width[..., None]
    shares = (torch.minimum(pixels + 1, low + width) - torch.maximum(pixels, low)) / width
    # Beyond the crop's edge its last pixel is repeated, as if there were nothing around it.
    last = torch.minimum((begin + span).ceil(), stored)[:, None, None].long() - 1
    first = first.long()[:, None, None]
    return torch.minimum((pixels.long() + first).clamp_min(first), last), shares.clamp_min(0.0)


def _plan(
    boxes: NDArray[np.int32], scales: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], tuple[Run, ...]]:
    """The order of cutting, [n * m], and its runs: crops with means of about as many pixels.

    A run does the work of its widest mean for each crop.
    """
    lengths = boxes[..., 2:].astype(np.float64)
    averaged = (lengths.min(-1) >= size) & (lengths.max(-1) >= 2 * size)
    steps = np.maximum(lengths / scales[:, None] / size, 1.0)
    widths = np.where(averaged[..., None], steps, 1.0).reshape(-1, 2)
    counts = np.ceil(widths - _SLACK).astype(np.int64) + 1
    most = counts.max(1)
    order = np.argsort(most, kind="stable")
    numbers = np.unique(most, return_counts=True)[1]
    runs, start = [], 0
    for crops in numbers.tolist():
        down, across = counts[order[start : start + crops]].max(0).tolist()
        runs.append(Run(crops, down, across))
        start += crops
    return order, tuple(runs)


def _check(boxes: NDArray[np.int32], whole: NDArray[np.integer]) -> None:
    ends = boxes[..., :2].astype(np.int64) + boxes[..., 2:]
    bad = (boxes[..., :2] < 0) | (boxes[..., 2:] < 1) | (ends > np.asarray(whole)[:, None])
    for i, j in np.argwhere(bad.any(-1)):
        top, left, height, width = boxes[i, j].tolist()
        raise ValueError(
            f"box (top {top}, left {left}, height {height}, width {width}) does not lie inside "
            f"the image of {whole[i][0]}x{whole[i][1]} pixels"
        )
