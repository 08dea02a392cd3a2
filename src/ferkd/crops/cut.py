"""The one way to cut a crop from a decoded image.

The teacher's labelling pass and the student's loader both go through :func:`cut`, so that the
student sees exactly what the teacher saw; :func:`cut_scaled` comes close to it where an image was
decoded or kept smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

# Recorded in every label store; a loader refuses labels that were cut by another rule.
CUT_RULE = "opencv area when both sides shrink and one at least twofold, else bilinear; v1"


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
    result is within 3 of 255 levels of :func:`cut`'s on average (tests/crops/test_crops.py).
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
