"""Sources of images, each a file here, and what a user writes to name one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ferkd.images.sources.filelist import ListImages
from ferkd.images.sources.folder import UNLABELLED, FolderImages
from ferkd.images.sources.hub import HubImages
from ferkd.images.sources.shards import ShardImages
from ferkd.images.sources.source import ImageSource, fingerprint
from ferkd.system.errors import InputError

# PREFIX: of a spec -> what opens it, of the whole spec and `targets`. Others may add to it.
SOURCES: dict[str, Callable[[str, bool], ImageSource]] = {
    "hf": HubImages,
    "list": ListImages,
    "wds": ShardImages,
}


def open_images(spec: str | Path | ImageSource, *, targets: bool = True) -> ImageSource:
    """Open an image source from what a user writes.

    spec: a folder, an fsspec URL of a folder (`s3://bucket/train`), PREFIX:... as `SOURCES` names
    them (hf:, list:, wds:), or a source already open, which comes back as it is; targets: False
    for no ground truth. Raises InputError.
    """
    if not isinstance(spec, str | Path):
        if not targets and (np.asarray(spec.targets) >= 0).any():
            raise InputError(
                f"{spec.name} is already open with its ground truth: open it with targets=False"
            )
        return spec
    kind, _, rest = str(spec).partition(":")
    if kind in SOURCES and not rest.startswith("//"):
        return SOURCES[kind](str(spec), targets)
    return FolderImages(spec, targets=targets)


def is_folder(spec: str | Path) -> bool:
    """Whether a spec names a folder of images and no source of another kind."""
    kind, _, rest = str(spec).partition(":")
    return kind not in SOURCES or rest.startswith("//")


__all__ = [
    "SOURCES",
    "UNLABELLED",
    "FolderImages",
    "ImageSource",
    "fingerprint",
    "is_folder",
    "open_images",
]
