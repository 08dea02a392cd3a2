"""Crops: which boxes an image shows, and the one function that cuts them.

The teacher's labelling pass and the student's loader both go through :func:`cut`, so that the
student sees exactly what the teacher saw; :func:`cut_scaled` comes close to it where an image was
decoded or kept smaller.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ferkd.errors import InputError

# Recorded in every label store; a loader refuses labels that were cut by another rule.
CUT_RULE = "opencv area when both sides shrink and one at least twofold, else bilinear; v1"

_ATTEMPTS = 10  # torchvision's number of tries before it falls back to a central crop
_SLOTS = 32  # random numbers set aside for one crop; a power of two, 23 are used
_TOP, _LEFT, _FLIP = 20, 21, 22


class CropDistribution(BaseModel):
    """The distribution that crops are drawn from: torchvision's RandomResizedCrop and flip.

    ``scale`` is the range of the crop's share of the image's area, ``ratio`` the range of its
    width / height (drawn log-uniformly), ``flip`` the probability of a horizontal mirror.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> CropDistribution:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must satisfy 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must satisfy 0 < low <= high")
        return self


def random_boxes(
    heights: ArrayLike,
    widths: ArrayLike,
    *,
    crops: int,
    seed: int,
    ids: Sequence[str],
    distribution: CropDistribution | None = None,
    first: int | NDArray[np.integer] = 0,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Draw ``crops`` random resized crops of each image; crop j depends on (seed, id, j) alone.

    ``heights`` and ``widths`` are the decoded sizes in pixels, [N] each, ``ids`` the N image ids.
    Returns boxes int32 [N, crops, 4] as (top, left, height, width) in pixels and flips bool
    [N, crops]. ``first`` skips crop numbers (of all images, or [N] of each), so drawing 50 and then
    50 more from ``first=50`` equals drawing 100. The distribution is torchvision's
    ``RandomResizedCrop.get_params``.
    """
    distribution = distribution or CropDistribution()
    height = np.asarray(heights, dtype=np.int64)[:, None]
    width = np.asarray(widths, dtype=np.int64)[:, None]
    if len(ids) != height.shape[0] or len(ids) != width.shape[0]:
        raise ValueError(f"{len(ids)} ids for {height.shape[0]} heights, {width.shape[0]} widths")
    if height.size and min(height.min(), width.min()) < 1:
        raise ValueError("heights and widths must be at least 1 pixel")
    keys = image_keys(ids, seed)
    numbers = np.broadcast_to(first, len(ids))[:, None] + np.arange(crops)
    slots = numbers.astype(np.uint64) * np.uint64(_SLOTS)

    def uniform(slot: int) -> NDArray[np.float64]:
        return uniforms(keys[:, None], slots + np.uint64(slot))

    shape = (len(ids), crops)
    box_h, box_w = (np.zeros(shape, dtype=np.int64) for _ in range(2))
    found = np.zeros(shape, dtype=bool)
    low, high = distribution.scale
    log_low, log_high = np.log(distribution.ratio[0]), np.log(distribution.ratio[1])
    for attempt in range(_ATTEMPTS):
        area = (height * width) * (low + (high - low) * uniform(2 * attempt))
        ratio = np.exp(log_low + (log_high - log_low) * uniform(2 * attempt + 1))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = ~found & (w > 0) & (w <= width) & (h > 0) & (h <= height)
        box_h[fits], box_w[fits] = h[fits], w[fits]
        found |= fits
        if found.all():
            break
    top = np.floor(uniform(_TOP) * (height - box_h + 1)).astype(np.int64)
    left = np.floor(uniform(_LEFT) * (width - box_w + 1)).astype(np.int64)

    central_h, central_w = _central_size(height, width, distribution.ratio)
    box_h = np.where(found, box_h, central_h)
    box_w = np.where(found, box_w, central_w)
    top = np.where(found, top, (height - central_h) // 2)
    left = np.where(found, left, (width - central_w) // 2)
    boxes = np.stack([top, left, box_h, box_w], axis=-1).astype(np.int32)
    return boxes, uniform(_FLIP) < distribution.flip


def _central_size(
    height: NDArray[np.int64], width: NDArray[np.int64], ratio: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The largest central crop whose aspect lies in ``ratio``: torchvision's fallback."""
    aspect = width / height
    h = np.where(aspect < ratio[0], np.rint(width / ratio[0]), height)
    w = np.where(aspect > ratio[1], np.rint(height * ratio[1]), width)
    return np.maximum(h, 1).astype(np.int64), np.maximum(w, 1).astype(np.int64)


def image_keys(ids: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """One 64-bit random key for each image id, [N], from (seed, id) alone (keyed BLAKE2b)."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; it must be at least 0 and below 2^63")
    salt = int(seed).to_bytes(16, "little")
    digests = (hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def hashes(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 at position ``counters`` of the streams ``keys``; the two broadcast.

    A counter-based generator of our own, because a library's random stream may change between
    versions, and because any crop of any image is then computed without drawing the ones before.
    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        x = keys + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def uniforms(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 bits, from :func:`hashes`."""
    return np.asarray((hashes(keys, counters) >> np.uint64(11)) * 2.0**-53)


def center_box(height: int, width: int, fraction: float = 1.0) -> tuple[int, int, int, int]:
    """The central square whose side is ``fraction`` of the shorter side: the evaluation crop.

    Equals resizing the shorter side to S / fraction and cutting the central S x S.
    """
    side = max(1, round(min(height, width) * fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def cut(
    image: NDArray[np.uint8],
    box: Sequence[int] | NDArray[np.integer],
    flip: bool,
    size: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Cut one crop, resize it to ``size`` x ``size`` and mirror it if ``flip``.

    ``image`` is uint8 [H, W, 3]; ``box`` is (top, left, height, width) in pixels and must lie
    inside the image (ValueError otherwise). Returns uint8 [size, size, 3], written into ``out``
    if given. The resize rule is :data:`CUT_RULE`: bilinear up to a twofold reduction, where its
    aliasing is still small, and area averaging beyond.
    """
    top, left, height, width = _inside(box, image.shape[0], image.shape[1])
    region = image[top : top + height, left : left + width]
    shrinks_twofold = min(height, width) >= size and max(height, width) >= 2 * size
    method = cv2.INTER_AREA if shrinks_twofold else cv2.INTER_LINEAR
    resized = cv2.resize(region, (size, size), dst=out, interpolation=method)
    # In place: the crop is still in the processor's cache, and no memory has to be found for it.
    return cv2.flip(resized, 1, dst=resized) if flip else resized  # type: ignore[return-value]


def cut_scaled(
    image: NDArray[np.uint8],
    full: tuple[int, int],
    scale: tuple[float, float],
    box: Sequence[int] | NDArray[np.integer],
    flip: bool,
    size: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """As :func:`cut`, from a smaller copy of an image; the box is rescaled exactly.

    ``image`` uint8 [h, w, 3] shows an image of ``full`` (height, width) pixels, ``scale`` (down,
    across) of whose pixels lie in each of its own, counted from the top left corner. ``box`` is in
    pixels of the full image. The copy is halved (2 x 2 means) while the crop still shrinks more
    than twofold, then sampled bilinearly at the exact places between pixels. On photographs the
    result is within 3 of 255 levels of :func:`cut`'s on average (tests/test_crops.py).
    """
    box = _inside(box, *full)
    top, left = box[0] / scale[0], box[1] / scale[1]
    height, width = box[2] / scale[0], box[3] / scale[1]
    while height * width >= 4 * size * size:
        # Halved from even rows and columns, so that a pixel of the half is a 2 x 2 mean.
        y, x = int(top) // 2 * 2, int(left) // 2 * 2
        region = image[y : math.ceil(top + height), x : math.ceil(left + width)]
        odd_rows, odd_columns = region.shape[0] % 2, region.shape[1] % 2
        if odd_rows or odd_columns:
            region = cv2.copyMakeBorder(  # type: ignore[assignment]
                region, 0, odd_rows, 0, odd_columns, cv2.BORDER_REPLICATE
            )
        half = (region.shape[1] // 2, region.shape[0] // 2)
        image = cv2.resize(region, half, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        top, left, height, width = (top - y) / 2, (left - x) / 2, height / 2, width / 2
    down, across = height / size, width / size
    first = left + across / 2 - 0.5
    if flip:
        across, first = -across, left + width - across / 2 - 0.5
    places = np.array([[across, 0, first], [0, down, top + down / 2 - 0.5]])
    return cv2.warpAffine(  # type: ignore[return-value]
        image,
        places,
        (size, size),
        dst=out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def largest_reduction(boxes: NDArray[np.integer], size: int) -> int:
    """How far an image may be scaled down before its crops are cut: 1, 2, 4 or 8.

    ``boxes`` [m, 4]; the largest factor at which no side of any crop has to grow to ``size``.
    """
    room = int(boxes[:, 2:].min()) // size
    return 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1


def _inside(
    box: Sequence[int] | NDArray[np.integer], rows: int, columns: int
) -> tuple[int, int, int, int]:
    """The box as integers; ValueError unless it lies inside an image of that size."""
    top, left, height, width = (int(v) for v in box)
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise ValueError(
            f"box (top {top}, left {left}, height {height}, width {width}) does not lie inside "
            f"the image of {rows}x{columns} pixels"
        )
    return top, left, height, width
