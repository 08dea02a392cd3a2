"""Sources of images, each a file here, and what a user writes to name one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ferkd.images.sources.filelist import ListImages
from ferkd.images.sources.folder import UNLABELLED, FolderImages
from ferkd.images.sources.hub import HubImages
from ferkd.images.sources.shards import ShardImages
from ferkd.images.sources.source import ImageSource, fingerprint, spelt_otherwise
from ferkd.system.errors import InputError
from ferkd.system.plugins import Table

# PREFIX: of a spec -> what opens it, of the whole spec and `targets`. Others may add to it.
SOURCES: dict[str, Callable[[str, bool], ImageSource]] = {
    "hf": HubImages,
    "list": ListImages,
    "wds": ShardImages,
}
# With those of other packages, by their entry points.
_ALL: Table[Callable[[str, bool], ImageSource]] = Table(
    what="image source",
    group="ferkd.sources",
    check=lambda thing: (
        None if callable(thing) else "cannot be called; give what opens (spec, targets)"
    ),
    own=SOURCES,
)
_OBJECT = re.compile(r"(?P<object>[A-Za-z_][\w.]*:(?P<name>[A-Za-z_]\w*)):(?P<rest>(?!//).*)")


def open_images(spec: str | Path | ImageSource, *, targets: bool = True) -> ImageSource:
    """Open an image source from what a user writes.

    spec: a folder, an fsspec URL of a folder (`s3://bucket/train`), PREFIX:... as `SOURCES` names
    them (hf:, list:, wds:) or another package by an entry point ``ferkd.sources``,
    package.module:name:REST, or a source already open, which comes back as it is; targets: False
    for no ground truth. Raises InputError.
    """
    if not isinstance(spec, str | Path):
        if not targets and (np.asarray(spec.targets) >= 0).any():
            raise InputError(
                f"{spec.name} is already open with its ground truth: open it with targets=False"
            )
        return spec
    text = str(spec)
    if not is_folder(spec):
        return _ALL[text.partition(":")[0]](text, targets)
    if (named := _OBJECT.fullmatch(text)) and not Path(text).exists():
        return _ALL[named["object"]](f"{named['name']}:{named['rest']}", targets)
    return FolderImages(spec, targets=targets)


def is_folder(spec: str | Path) -> bool:
    """Whether a spec names a folder of images and no source of another kind."""
    kind, _, rest = str(spec).partition(":")
    return kind not in _ALL or rest.startswith("//")


def refuse_other_sources(spec: str | Path, what: str) -> None:
    """Raise InputError for a spec that names no folder, where ``what`` divides a local one."""
    if not is_folder(spec):
        raise InputError(
            f"{spec} is no folder, and {what} divides the class folders of one into training and "
            "validation images; give a folder, or use ferkd label and ferkd train"
        )


__all__ = [
    "SOURCES",
    "UNLABELLED",
    "FolderImages",
    "ImageSource",
    "fingerprint",
    "is_folder",
    "open_images",
    "refuse_other_sources",
    "spelt_otherwise",
]
