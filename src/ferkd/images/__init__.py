"""Where pictures come from, and how their bytes become pixels."""

from __future__ import annotations

from .cache import PixelCache
from .decode import (
    DECODER,
    MAX_PIXELS,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
)
from .pictures import Picture, Pictures
from .source import FolderImages, ImageSource, fingerprint, open_images

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "FolderImages",
    "ImageSource",
    "Picture",
    "Pictures",
    "PixelCache",
    "Unreadable",
    "UnreadableImage",
    "check_unreadable_share",
    "decode",
    "fingerprint",
    "open_images",
]
