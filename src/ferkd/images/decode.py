"""Encoded bytes to RGB pixels, by one rule whichever back-end reads them.

The rule (rule 1):

* The result is uint8 RGB, [H, W, 3], C-contiguous.
* Orientation: tag 0x0112 of the first directory of the file's EXIF block (of a TIFF: of the
  file) is applied, or ignored if asked. XMP and a malformed EXIF block count for nothing.
* Grey is repeated over the channels, palettes are expanded, CMYK and YCCK become RGB (always
  with Adobe's inverted polarity, the only one in use).
* Alpha is dropped: the colour stored under a transparent pixel stays.
* 16-bit samples keep their high byte (v >> 8). 32-bit integer and float samples have no stated
  range and are refused.
* An animation or a multi-page file gives its first picture.
* Colour profiles are not applied.

OpenCV reads the JPEG files that are certainly plain (8-bit baseline or progressive, grey or three
channels, ending in the end-of-image marker); Pillow reads the rest. Both build on libjpeg-turbo
and agree on the files that either could read.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import PIL
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ferkd.system.errors import InputError
from ferkd.system.text import name as visible

DECODER = f"opencv {cv2.__version__} / pillow {PIL.__version__}, rule 1"

# Below the size at which Pillow itself refuses (179 million), so that both back-ends stop at the
# same one; above what the largest cameras take (151 million).
MAX_PIXELS = 175_000_000

# Named so that Pillow never tries the others: its EPS reader runs Ghostscript on the file.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ORIENTATION_TAG = 0x0112
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

_JPEG_SOI = b"\xff\xd8"
_JPEG_EOI = b"\xff\xd9"
_JPEG_APP1 = 0xE1
_JPEG_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; Huffman
# Markers with a segment that may come before a plain frame header: tables, restart interval,
# application data, comments.
_JPEG_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
_EXIF_HEADER = b"Exif\x00\x00"


class UnreadableImage(InputError):
    """The bytes are not an image that can be read. The message is the reason alone: the caller
    knows which image it is and adds the id."""


class Unreadable(NamedTuple):
    """One listed skip: the id of an image and why it could not be read."""

    id: str
    reason: str


def check_unreadable_share(
    unreadable: Sequence[Unreadable], total: int, limit: float = 0.01, *, option: str = ""
) -> None:
    """Refuse an image set of which more than a stated share cannot be read.

    unreadable: the skips so far; total: how many images were looked at; limit: the largest
    share allowed, 0..1 (exactly the limit passes); option: what sets the limit, where something
    does. Raises InputError naming the first offenders and the option.
    """
    if not unreadable or len(unreadable) / total <= limit:
        return
    shown = "; ".join(f"{visible(id)} ({visible(reason)})" for id, reason in unreadable[:5])
    more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    raise InputError(
        f"{len(unreadable)} of {total} images ({len(unreadable) / total:.1%}) are unreadable, "
        f"more than the {limit:.1%} allowed: {shown}{more}. "
        "Repair or remove these files"
        + (f", or allow a larger share with {option}" if option else "")
    )


class _PlainJpeg(NamedTuple):
    """What the header of a JPEG that OpenCV may read says."""

    height: int
    width: int
    orientation: int


def decode(data: bytes, *, exif: bool = True) -> np.ndarray:
    """Decode one image to uint8 RGB pixels [H, W, 3], C-contiguous, by the rule above.

    data: the whole encoded file; exif: apply the EXIF orientation (False: pixels as stored).
    Raises UnreadableImage with the reason: empty data, no image, a truncated file, no pixels,
    or more than MAX_PIXELS (found out before any pixel is decoded).
    """
    if not data:
        raise UnreadableImage("the file is empty")
    header = plain_jpeg(data)
    if header is None:
        return _decode_pillow(data, exif)
    _check_size(header.width, header.height)
    pixels = _decode_opencv(data)
    if pixels is None or pixels.shape != (header.height, header.width, 3):
        return _decode_pillow(data, exif)
    return turn(pixels, header.orientation) if exif else pixels


def plain_jpeg(data: bytes) -> _PlainJpeg | None:
    """Walk a JPEG's segments up to the frame header; None where Pillow has to decide.

    A file that does not end in the end-of-image marker may be truncated, which OpenCV (by its
    version) fills with grey and Pillow refuses; a file with bytes after it goes to Pillow too.
    """
    if not (data.startswith(_JPEG_SOI) and data.endswith(_JPEG_EOI)):
        return None
    orientation: int | None = None  # of the first EXIF block
    position, last = 2, len(data) - 10  # the bytes of a frame header that are read here
    while position <= last:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker in _JPEG_PLAIN_FRAMES:
            precision, channels = data[position + 4], data[position + 9]
            if precision != 8 or channels not in (1, 3):
                return None
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            return _PlainJpeg(height, width, orientation or 1)
        if marker == 0xFF:  # a fill byte before a marker
            position += 1
            continue
        if marker not in _JPEG_SEGMENTS:
            return None
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        is_exif = marker == _JPEG_APP1 and data.startswith(_EXIF_HEADER, position + 4)
        if is_exif and orientation is None:
            orientation = exif_orientation(data[position + 4 : end])
        position = end
    return None


def _decode_opencv(data: bytes) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _decode_pillow(data: bytes, exif: bool) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated images would come back half "
            "grey. Set it to False before reading images"
        )
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            _check_size(*image.size)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                return _tiff_pixels(image, exif)
            image.load()  # first: a PNG may keep its EXIF block behind the pixels
            pixels = _rgb(image)
            return turn(pixels, exif_orientation(image.info.get("exif", b""))) if exif else pixels
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        known = ", ".join(PILLOW_FORMATS)
        raise UnreadableImage(
            f"no image of a known kind ({known}) or a damaged header: it begins {data[:16]!r}"
        ) from None
    except Exception as error:  # Pillow's readers raise nearly every type on damaged files
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UnreadableImage(f"it has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            f"{width}x{height} are {width * height} pixels, over the limit of {MAX_PIXELS}"
        )


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded Pillow image as uint8 [H, W, 3]."""
    # Some versions of Pillow widen 16-bit grey to 32-bit integers when they load these formats.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableImage("32-bit samples have no stated range: convert it to 8 or 16 bit")
    if image.mode != "RGB":
        image.info.pop("transparency", None)  # only the colours are wanted; else convert() warns
        image = image.convert("RGB")
    return np.array(image)


def _tiff_pixels(image: TiffImagePlugin.TiffImageFile, exif: bool) -> np.ndarray:
    """Pillow turns TIFF pixels upright as it loads them: undo that where it is not wanted."""
    orientation: int = image.tag_v2.get(_ORIENTATION_TAG, 1)
    image.info.pop("xmp", None)  # where Pillow would look for another orientation
    image.load()
    pixels = _rgb(image)
    # The two quarter turns undo each other, the other turns undo themselves.
    return pixels if exif else turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def exif_orientation(block: bytes) -> int:
    """The orientation (1..8) in an EXIF block; 1 where there is none or the block is damaged."""
    tiff = block.removeprefix(_EXIF_HEADER)
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
        if number(entry, 2) == _ORIENTATION_TAG:
            size = {3: 2, 4: 4}.get(number(entry + 2, 2), 0)  # SHORT as the standard says, or LONG
            value = number(entry + 8, size)
            return value if value in _TURNS else 1
    return 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels upright."""
    if orientation not in _TURNS:
        return pixels
    transpose, flip = _TURNS[orientation]
    if transpose:
        pixels = cv2.transpose(pixels)
    return pixels if flip is None else cv2.flip(pixels, flip)
