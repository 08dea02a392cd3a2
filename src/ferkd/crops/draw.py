"""Which boxes an image shows: drawn from a distribution, or central."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from ferkd.system.settings import Part, check_seed

_ATTEMPTS = 10  # torchvision's number of tries before it falls back to a central crop
_SLOTS = 32  # random numbers set aside for one crop; a power of two, 23 are used
_TOP, _LEFT, _FLIP = 20, 21, 22


class CropDistribution(Part):
    """The distribution that crops are drawn from: torchvision's RandomResizedCrop and flip.

    ``scale`` is the range of the crop's share of the image's area, ``ratio`` the range of its
    width / height (drawn log-uniformly), ``flip`` the probability of a horizontal mirror.
    """

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
    check_seed(seed)
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
