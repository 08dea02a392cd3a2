"""Sizes without decoding, and decoding at a fraction of the size inside the JPEG decoder.

A JPEG holds 8 x 8 blocks of cosine coefficients; libjpeg-turbo turns the low ones of a block into
4 x 4, 2 x 2 or 1 x 1 pixels, for a fraction of the work. A pixel of the result covers exactly
2 x 2, 4 x 4 or 8 x 8 pixels of the image, counted from its stored top left corner.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, TiffImagePlugin

from .decode import BYTES_A_PIXEL, MAX_PIXELS, decode, decode_plain
from .exif import ORIENTATION_TAG, TRANSPOSED, exif_block, exif_orientation, turn
from .jpeg import plain_jpeg
from .kinds import TURNED_BY_DECODER, formats
from .room import room


def jpeg_size(data: bytes, *, exif: bool = True) -> tuple[int, int] | None:
    """Height and width of a plain JPEG file (see ferkd.images.decode), upright if ``exif``.

    None for every other file. One whose header is sound may still turn out unreadable.
    """
    header = plain_jpeg(data)
    if header is None or not 0 < header.height * header.width <= MAX_PIXELS:
        return None
    if exif and header.orientation in TRANSPOSED:
        return header.width, header.height
    return header.height, header.width


def image_size(data: bytes, *, exif: bool = True) -> tuple[int, int] | None:
    """Height and width from the header alone; None where it does not say.

    An orientation that stands behind the pixels, as in some PNG files, is not seen.
    """
    if (size := jpeg_size(data, exif=exif)) is not None:
        return size
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            width, height = image.size
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                orientation = image.tag_v2.get(ORIENTATION_TAG, 1)
            elif image.format in TURNED_BY_DECODER:
                orientation = 1
            else:
                orientation = exif_orientation(exif_block(image.info))
    except Exception:  # Pillow's readers raise nearly every type on damaged files
        return None
    return (width, height) if exif and orientation in TRANSPOSED else (height, width)


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
    # A progressive file's coefficients are all held whatever the reduction.
    with room(header.height * header.width, BYTES_A_PIXEL):
        pixels = decode_plain(data, header, reduction)
        if pixels is not None:
            return turn(pixels, orientation), reduction
    return decode(data, exif=exif), 1
