"""Where pictures come from, and how their bytes become pixels."""

from __future__ import annotations

from .decode import (
    DECODER,
    MAX_PIXELS,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
)
from .source import FolderImages, ImageSource, fingerprint, open_images

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "FolderImages",
    "ImageSource",
    "Unreadable",
    "UnreadableImage",
    "check_unreadable_share",
    "decode",
    "fingerprint",
    "open_images",
]
