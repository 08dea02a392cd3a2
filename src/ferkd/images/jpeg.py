"""What the markers of a JPEG file say before, and its pixels after, it is decoded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .exif import EXIF_HEADER, exif_orientation

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
_SOS = b"\xff\xda"
_PROGRESSIVE = b"\xff\xc2"
_APP1 = 0xE1
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; Huffman
# Markers with a segment that may come before a plain frame header: tables, restart interval,
# application data, comments.
_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
# The end of a scan: a marker, but no escaped 0xFF, restart or fill byte.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# Encoders write 10 scans of colour images, those that optimise up to some 30.
MAX_SCANS = 100
# Pixels times scans: about six seconds. The largest cameras' 151 million in 10 scans are fewer.
MAX_SCANNED = 2_500_000_000
# Bytes that stand for coefficients in nearly any Huffman table and hold no marker.
_MORE_DATA = bytes((37 * i + 11) % 255 for i in range(256))


class PlainJpeg(NamedTuple):
    """What the header of a JPEG that OpenCV may read says."""

    height: int
    width: int
    orientation: int


def plain_jpeg(data: bytes) -> PlainJpeg | None:
    """Walk a JPEG's segments up to the frame header; None where Pillow has to decide.

    A file that does not end in the end-of-image marker may be truncated, which OpenCV (by its
    version) fills with grey and Pillow refuses; a file with bytes after it goes to Pillow too.
    """
    if not (data.startswith(SOI) and data.endswith(EOI)):
        return None
    orientation: int | None = None  # of the first EXIF block
    position, last = 2, len(data) - 10  # the bytes of a frame header that are read here
    while position <= last:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker in _PLAIN_FRAMES:
            precision, channels = data[position + 4], data[position + 9]
            if precision != 8 or channels not in (1, 3):
                return None
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            return PlainJpeg(height, width, orientation or 1)
        if marker == 0xFF:  # a fill byte before a marker
            position += 1
            continue
        if marker not in _SEGMENTS:
            return None
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        is_exif = marker == _APP1 and data.startswith(EXIF_HEADER, position + 4)
        if is_exif and orientation is None:
            orientation = exif_orientation(data[position + 4 : end])
        position = end
    return None


def too_many_scans(data: bytes, pixels: int) -> str:
    """Why a JPEG of so many pixels would take too long to decode; empty where it would not.

    A decoder works through all pixels in each scan, and a scan may take six bytes.
    """
    allowed = min(MAX_SCANS, max(1, MAX_SCANNED // max(1, pixels)))
    if data.count(_SOS) <= allowed:  # the marker cannot stand inside a scan, only in metadata
        return ""
    scans = _walk(data)[0]
    if scans <= allowed:
        return ""
    return f"{scans} scans over {pixels} pixels are more than the {allowed} that are decoded"


def cut_short(data: bytes, pixels: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> bool:
    """Whether the data of a JPEG's last scan end before its last pixel.

    The decoders fill what is missing behind an end-of-image marker with middle grey and say
    nothing. Where the last of ``pixels`` [H, W, C], as stored, may be such a filling, ``decode``
    is given the file as it is and with more data before the marker: a whole file is the same.
    """
    last = pixels[-1:, -1:].ravel().tolist()  # of grey there is one value, and no third axis
    may_be_filled = all(127 <= value <= 129 for value in last)
    if not (may_be_filled or _only_coarse(data)):
        return False
    end = _walk(data)[1]
    return not np.array_equal(decode(data), decode(data[:end] + _MORE_DATA + data[end:]))


def _only_coarse(data: bytes) -> bool:
    """Whether a progressive file has its first scan alone: the decoder smooths what is missing."""
    first = data.find(_SOS)
    return _PROGRESSIVE in data[:first] and data.find(_SOS, first + 2) < 0


def _walk(data: bytes) -> tuple[int, int]:
    """The number of scans, and the place where the last one's data end."""
    scans, end, position = 0, len(data), 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == EOI[1]:
            break
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if marker == _SOS[1]:
            scans += 1
            found = _AFTER_SCAN.search(data, position)
            end = position = found.start() if found else len(data)
    return scans, end
