"""Sizes without decoding, and decoding at a fraction of the size inside the JPEG decoder.

A JPEG holds 8 x 8 blocks of cosine coefficients; libjpeg-turbo turns the low ones of a block into
4 x 4, 2 x 2 or 1 x 1 pixels, for a fraction of the work. A pixel of the result covers exactly
2 x 2, 4 x 4 or 8 x 8 pixels of the image, counted from its stored top left corner.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from .decode import (
    MAX_PIXELS,
    PILLOW_FORMATS,
    decode,
    exif_orientation,
    plain_jpeg,
    turn,
)

# OpenCV names these flags for grey and BGR only; with the RGB bit they mean the same.
_FLAGS = {2: 16, 4: 32, 8: 64}
_TRANSPOSED = (5, 6, 7, 8)


def jpeg_size(data: bytes, *, exif: bool = True) -> tuple[int, int] | None:
    """Height and width of a plain JPEG file (see ferkd.images.decode), upright if ``exif``.

    None for every other file. One whose header is sound may still turn out unreadable.
    """
    header = plain_jpeg(data)
    if header is None or not 0 < header.height * header.width <= MAX_PIXELS:
        return None
    if exif and header.orientation in _TRANSPOSED:
        return header.width, header.height
    return header.height, header.width


def image_size(data: bytes, *, exif: bool = True) -> tuple[int, int] | None:
    """Height and width from the header alone; None where it does not say.

    An orientation that stands behind the pixels, as in some PNG files, is not seen.
    """
    if (size := jpeg_size(data, exif=exif)) is not None:
        return size
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            width, height = image.size
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                orientation = image.tag_v2.get(0x0112, 1)
            else:
                orientation = exif_orientation(image.info.get("exif", b""))
    except Exception:  # Pillow's readers raise nearly every type on damaged files
        return None
    return (width, height) if exif and orientation in _TRANSPOSED else (height, width)


def decode_scaled(data: bytes, reduction: int, *, exif: bool = True) -> tuple[np.ndarray, int]:
    """Decode at 1 / ``reduction`` (1, 2, 4 or 8) of the size where that is exact, else in full.

    Returns uint8 RGB [h, w, 3] and the reduction it has. Exact are plain JPEG files (see
    ferkd.images.decode) whose turned sides are multiples of the reduction: a pixel at an edge that
    is only partly covered has to stay at the bottom or on the right. Raises UnreadableImage.
    """
    header = plain_jpeg(data) if reduction > 1 else None
    if header is None or header.height * header.width > MAX_PIXELS:
        return decode(data, exif=exif), 1
    orientation = header.orientation if exif else 1
    if orientation != 1 and (header.height % reduction or header.width % reduction):
        return decode(data, exif=exif), 1
    flags = _FLAGS[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    expected = (-(-header.height // reduction), -(-header.width // reduction), 3)
    if pixels is None or pixels.shape != expected:
        return decode(data, exif=exif), 1
    return turn(pixels, orientation), reduction
