"""Encoded bytes to RGB pixels, by one rule whichever back-end reads them.

The rule (rule 2):

* The result is uint8 RGB, [H, W, 3], C-contiguous.
* Orientation: tag 0x0112 of the first directory of the file's EXIF block (of a TIFF: of the
  file; of a PNG: also of the text in which ImageMagick keeps the block) is applied, or ignored if
  asked. XMP and a malformed EXIF block count for nothing. HEIC and JPEG XL have an orientation of
  their own, which is always applied, and EXIF's counts for nothing there.
* Grey is repeated over the channels, palettes are expanded, CMYK and YCCK become RGB (always
  with Adobe's inverted polarity, the only one in use).
* Alpha is dropped: the colour stored under a transparent pixel stays.
* 16-bit samples keep their high byte (v >> 8). 32-bit integer and float samples have no stated
  range and are refused.
* An animation or a multi-page file gives its first picture.
* Colour profiles are not applied.
* A JPEG whose data end early is refused, an end-of-image marker behind them or not. So is one of
  so many scans that they take minutes.

OpenCV reads the JPEG files that are certainly plain (8-bit baseline or progressive, grey or three
channels, ending in the end-of-image marker); Pillow reads the rest. Both build on libjpeg-turbo
and agree on the files that either could read. HEIC and JPEG XL are read where the user has the
plug-in of Pillow for them (see ferkd.images.kinds).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import PIL
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ferkd.system.errors import InputError
from ferkd.system.text import name as visible

from .exif import ORIENTATION_TAG, exif_block, exif_orientation, turn
from .jpeg import SOI, PlainJpeg, cut_short, plain_jpeg, too_many_scans
from .kinds import TURNED_BY_DECODER, formats
from .room import room

DECODER = f"opencv {cv2.__version__} / pillow {PIL.__version__}, rule 2"

# Below the size at which Pillow itself refuses (179 million), so that both back-ends stop at the
# same one; above what the largest cameras take (151 million).
MAX_PIXELS = 175_000_000

# Bytes a pixel at the height of decoding: those of the result, of the same turned, and a
# progressive JPEG's coefficients or the planes of another decoder.
BYTES_A_PIXEL = 12
_SIMPLE_FORMATS = ("PNG", "GIF", "BMP", "PPM")  # decoded straight into Pillow's own pixels
_STRIP = 1 << 22  # pixels that become RGB at a time
# OpenCV names these flags for grey and BGR only; with the RGB bit they mean the same.
_REDUCTIONS = {1: 0, 2: 16, 4: 32, 8: 64}


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


def decode(data: bytes, *, exif: bool = True) -> np.ndarray:
    """Decode one image to uint8 RGB pixels [H, W, 3], C-contiguous, by the rule above.

    data: the whole encoded file; exif: apply the EXIF orientation (False: pixels as stored).
    Raises UnreadableImage with the reason: empty data, no image, a truncated file, no pixels,
    more than MAX_PIXELS or too many scans (found out before any pixel is decoded). Of large
    images few are decoded at a time; raises NoRoom where memory does not suffice for one.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    header = plain_jpeg(data)
    if header is None:
        return _decode_pillow(data, exif)
    _check_size(header.width, header.height)
    with room(header.width * header.height, BYTES_A_PIXEL):
        pixels = decode_plain(data, header)
        if pixels is not None:
            return turn(pixels, header.orientation) if exif else pixels
    return _decode_pillow(data, exif)


def decode_plain(data: bytes, header: PlainJpeg, reduction: int = 1) -> np.ndarray | None:
    """The pixels of a plain JPEG as stored, at 1 / ``reduction`` of its size, by OpenCV.

    None where Pillow has to decide. Raises UnreadableImage.
    """
    if reason := too_many_scans(data, header.height * header.width):
        raise UnreadableImage(reason)
    flags = _REDUCTIONS[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (
        -(-header.height // reduction),
        -(-header.width // reduction),
        3,
    ):
        return None
    _check_whole(data, pixels)
    return pixels


def _check_whole(data: bytes, pixels: np.ndarray) -> None:
    if cut_short(data, pixels, _stored_pixels):
        raise UnreadableImage("the file is truncated: its last pixels are missing")


def _stored_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image)


def _decode_pillow(data: bytes, exif: bool) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated images would come back half "
            "grey. Set it to False before reading images"
        )
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            _check_size(*image.size)
            with room(image.width * image.height, _pillow_bytes(image)):
                pixels, orientation = _pillow_pixels(image, data, exif)
                image.close()
                return turn(pixels, orientation)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        known = ", ".join(formats())
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


def _pillow_bytes(image: Image.Image) -> int:
    """Bytes a pixel that decoding an opened image takes at its height."""
    own = 1 if image.mode in ("1", "L", "P") else 4
    return own + 6 if image.format in _SIMPLE_FORMATS else own + BYTES_A_PIXEL


def _pillow_pixels(image: Image.Image, data: bytes, exif: bool) -> tuple[np.ndarray, int]:
    """The pixels of an opened image, and the orientation that is still to be undone."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_pixels(image, exif)
    is_jpeg = data.startswith(SOI)
    if is_jpeg and (reason := too_many_scans(data, image.width * image.height)):
        raise UnreadableImage(reason)
    image.load()  # first: a PNG may keep its EXIF block behind the pixels
    if is_jpeg:
        _check_whole(data, np.asarray(image.crop((image.width - 1, image.height - 1, *image.size))))
    orientation = exif_orientation(exif_block(image.info)) if exif else 1
    return _rgb(image), 1 if image.format in TURNED_BY_DECODER else orientation


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded Pillow image as uint8 [H, W, 3]."""
    # Some versions of Pillow widen 16-bit grey to 32-bit integers when they load these formats.
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not wide:
        raise UnreadableImage("32-bit samples have no stated range: convert it to 8 or 16 bit")
    image.info.pop("transparency", None)  # only the colours are wanted; else convert() warns
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, _STRIP // image.width)
    for top in range(0, image.height, step):  # a copy of all of a large image would be a third one
        bottom = min(top + step, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if wide:
            pixels[top:bottom] = (np.asarray(strip) >> 8).astype(np.uint8)[:, :, None]
        else:
            pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels


def _tiff_pixels(image: TiffImagePlugin.TiffImageFile, exif: bool) -> tuple[np.ndarray, int]:
    """Pillow turns TIFF pixels upright as it loads them: undo that where it is not wanted."""
    orientation: int = image.tag_v2.get(ORIENTATION_TAG, 1)
    image.info.pop("xmp", None)  # where Pillow would look for another orientation
    image.load()
    # The two quarter turns undo each other, the other turns undo themselves.
    return _rgb(image), 1 if exif else {6: 8, 8: 6}.get(orientation, orientation)
