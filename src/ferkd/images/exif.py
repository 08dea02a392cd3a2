"""EXIF orientation: found in a block of bytes, and undone in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np

ORIENTATION_TAG = 0x0112
EXIF_HEADER = b"Exif\x00\x00"
TRANSPOSED = (5, 6, 7, 8)  # the orientations whose width is the upright image's height

# EXIF orientation -> (transpose first, then flip as cv2.flip codes it; None: no flip).
_TURNS: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
# Where ImageMagick keeps the block in a PNG: in hexadecimal, as a text.
_RAW_PROFILES = ("Raw profile type exif", "Raw profile type APP1")


def exif_orientation(block: bytes) -> int:
    """The orientation (1..8) in an EXIF block; 1 where there is none or the block is damaged."""
    tiff = block.removeprefix(EXIF_HEADER)
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II*\x00") else "big"
    if order == "big" and not tiff.startswith(b"MM\x00*"):
        return 1

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)

    directory = number(4, 4)
    for index in range(number(directory, 2)):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(tiff):
            return 1
        if number(entry, 2) == ORIENTATION_TAG:
            size = {3: 2, 4: 4}.get(number(entry + 2, 2), 0)  # SHORT as the standard says, or LONG
            value = number(entry + 8, size)
            return value if value in _TURNS else 1
    return 1


def exif_block(info: Mapping[Any, Any]) -> bytes:
    """The EXIF block that Pillow found in a file (``Image.info``); empty where there is none.

    The format's own block goes before ImageMagick's text, whose first three lines are empty, the
    profile's name and its length.
    """
    if (block := info.get("exif")) is not None:
        return bytes(block)
    for name in _RAW_PROFILES:
        try:
            block = bytes.fromhex("".join(str(info.get(name, "")).split("\n")[3:]))
        except ValueError:
            continue
        if block.startswith(EXIF_HEADER):
            return block
    return b""


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels upright."""
    if orientation not in _TURNS:
        return pixels
    transpose, flip = _TURNS[orientation]
    if transpose:
        pixels = cv2.transpose(pixels)
    return pixels if flip is None else cv2.flip(pixels, flip)
