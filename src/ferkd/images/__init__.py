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
from .kinds import describe_unread
from .outputs import refuse_inside_images
from .pictures import Picture, Pictures
from .room import named
from .sources import (
    SOURCES,
    UNLABELLED,
    FolderImages,
    ImageSource,
    fingerprint,
    is_folder,
    open_images,
    refuse_other_sources,
    spelt_otherwise,
)

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "SOURCES",
    "UNLABELLED",
    "FolderImages",
    "ImageSource",
    "Picture",
    "Pictures",
    "PixelCache",
    "Unreadable",
    "UnreadableImage",
    "check_unreadable_share",
    "decode",
    "describe_unread",
    "fingerprint",
    "is_folder",
    "named",
    "open_images",
    "refuse_inside_images",
    "refuse_other_sources",
    "spelt_otherwise",
]
