"""A part of a store that is being written: one .npz file of some images, whole or damaged."""

from __future__ import annotations

import errno
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.store import manifest as manifests
from ferkd.store.ids import IMAGE
from ferkd.system.errors import InputError

# What zipfile and NumPy say to foreign bytes; NotImplementedError is a RuntimeError too.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,
    OverflowError,
)


def part_members(
    ids: Sequence[str],
    images: NDArray[Any],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    records: NDArray[Any],
    skipped: Sequence[manifests.Skipped],
) -> dict[str, NDArray[Any]]:
    """The arrays of a part, by name; the arguments are those of
    :meth:`ferkd.store.writer.StoreWriter.write`."""
    encoded = [i.encode() for i in ids]
    images = images.copy()
    images["id_end"] = np.cumsum([len(i) for i in encoded], dtype=np.uint64)
    reasons = json.dumps([s.model_dump() for s in skipped], ensure_ascii=False).encode()
    return {
        "ids": np.frombuffer(b"".join(encoded), "u1"),
        "images": images,
        "boxes": np.asarray(boxes, "<u2"),
        "flips": np.packbits(flips, axis=1, bitorder="little"),
        "records": records,
        "skipped": np.frombuffer(reasons, "u1"),
    }


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open part; its members are checked against their CRC-32 as they are read.

    Raises FileNotFoundError, and InputError where the part is damaged, which is also what a
    ValueError within the block says.
    """
    try:
        with np.load(path, allow_pickle=False) as part:
            yield part
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file
            raise
        raise InputError(
            f"{path} is damaged ({error}); delete it and continue with --resume"
        ) from None


def is_whole(path: Path) -> bool:
    """Whether every member of a part has the bytes that it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (*_DAMAGE, OSError):
        return False


def table_of(part: Any, crops: int) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint8]]:
    """The image table [n], the text of the ids, and the packed flips of ``crops`` crops of each
    image. Raises ValueError for what can be none of an open part."""
    images, ids, flips = part["images"], part["ids"], part["flips"]
    if images.dtype != IMAGE or images.ndim != 1:
        raise ValueError("its image table is none")
    end = int(images["id_end"][-1]) if len(images) else 0
    if ids.dtype != np.uint8 or ids.shape != (end,):
        raise ValueError("its ids are not those of its image table")
    if flips.dtype != np.uint8 or flips.shape != (len(images), -(-crops // 8)):
        raise ValueError("its flips are not those of its crops")
    return images, ids, flips


def skipped_of(part: Any) -> list[manifests.Skipped]:
    """The images that an open part leaves out. Raises ValueError for what is no list of them."""
    try:
        return [manifests.Skipped(**skip) for skip in json.loads(part["skipped"].tobytes())]
    except (ValueError, TypeError):
        raise ValueError("its list of images left out is none") from None
