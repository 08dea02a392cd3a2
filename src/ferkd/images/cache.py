"""Decoded images kept once for all epochs, workers and, on disk, runs.

Every image has a place of its own in one memory map, computed from the images' sizes beforehand.
So nothing is allocated while loading, no lock is needed (two workers that fill the same place
write the same bytes), and the memory it takes is known before the first image is decoded.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ferkd.system.errors import InputError
from ferkd.system.memory import free_memory
from ferkd.system.storage import is_url, masked, user_cache

from .decode import DECODER
from .scaled import image_size
from .sources import ImageSource, fingerprint

Kind = Literal["ram", "disk"]

# What is known of an image once its pixels are kept; ``height`` and ``width`` are the whole
# image's, ``rows`` and ``columns`` those of the kept copy. ``filled`` is set last.
_ENTRY = np.dtype(
    [
        ("fingerprint", "<u8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("rows", "<u4"),
        ("columns", "<u4"),
        ("crc", "<u4"),
        ("filled", "<u4"),
    ]
)
_SAMPLE = 256  # images whose size is read before those of all are


class Kept(NamedTuple):
    """A cached image: pixels uint8 [h, w, 3], the whole image's size, its file's fingerprint."""

    pixels: NDArray[np.uint8]
    height: int
    width: int
    fingerprint: int


@dataclass(frozen=True)
class Need:
    """What a cache takes: images, bytes, and the bytes that it may take."""

    images: int
    bytes: int
    limit: int
    kind: Kind

    def describe(self) -> str:
        where = "memory" if self.kind == "ram" else "disk space"
        return (
            f"decoded images of {self.images} files take {_size(self.bytes)} of {where}, of "
            f"{_size(self.limit)} that may be used"
        )


class PixelCache:
    """The decoded pixels of a source's images, once for this process and its forked workers.

    ``kind`` "ram": shared anonymous memory, empty at the start of each run. "disk": a file in
    ``folder`` that later runs find again; each process checks an image's file and pixels against
    the fingerprint and checksum once before it trusts them. ``max_side``: images whose shorter
    side is longer are kept smaller. ``limit``: the bytes it may take; None for half of the memory
    that is free, or nine tenths of the free disk space. ``sizes`` int [N, 2], heights and widths,
    spares reading every file's header. Raises InputError, with the numbers, where the images do
    not fit; nothing is written then.
    """

    def __init__(
        self,
        source: ImageSource,
        kind: Kind,
        *,
        exif: bool = True,
        max_side: int | None = None,
        limit: int | None = None,
        folder: str | Path | None = None,
        sizes: NDArray[np.integer] | None = None,
    ) -> None:
        if max_side is not None and max_side < 1:
            raise InputError(f"cache_side is {max_side}; it must be at least 1 pixel")
        self.kind, self.max_side = kind, max_side
        self.identity = _identity(source, exif)
        place = Path(folder).expanduser() if folder is not None else user_cache() / "pixels"
        if limit is None:
            limit = free_memory() // 2 if kind == "ram" else _free_disk(place) * 9 // 10
        count = len(source)
        if sizes is None:
            _refuse_beyond(_estimate(source, exif, max_side), limit, kind, count, estimated=True)
            sizes = np.array(
                [image_size(source.read(i), exif=exif) or (0, 0) for i in range(count)]
            )
        rows, columns = _capped(np.asarray(sizes, np.int64), max_side)
        self._offsets = (
            np.concatenate([[0], np.cumsum(rows * columns * 3)]) + count * _ENTRY.itemsize
        )
        total = int(self._offsets[-1])
        self.path: Path | None = None
        if kind == "disk":
            key = _key(self.identity, max_side, self._offsets)
            self.path = place / f"{key}.pixels"
        self.need = Need(count, total, limit, kind)
        if self.path is None or not self.path.is_file():
            _refuse_beyond(total, limit, kind, count, estimated=False)
        self._open()

    def _open(self) -> None:
        count = self.need.images
        self._bytes = _map(self.path, max(self.need.bytes, 1))
        self._entries = self._bytes[: count * _ENTRY.itemsize].view(_ENTRY)
        # The fingerprint of the file that each image was compared with, by this process.
        self._trusted = np.zeros(count, np.uint64)
        self._compared = np.zeros(count, bool)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not forked: it maps the file again (memory cannot be sent)."""
        if self.path is None:
            raise TypeError("a cache in memory is shared with forked processes alone")
        mapped = ("_bytes", "_entries", "_trusted", "_compared")
        return {name: value for name, value in vars(self).items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def describe(self) -> str:
        """One line for the log: what it takes, and how much of it is filled."""
        filled = int(np.count_nonzero(self._entries["filled"]))
        return f"{self.need.describe()}; {filled} kept so far"

    def get(self, place: int, data: bytes | None = None) -> Kept | None:
        """What is kept of an image, or None.

        On disk an image is first given with its file's bytes ``data``, which it has to match; None
        then means that nothing is kept of these bytes. `trusts` tells whether they are needed.
        """
        entry = self._entries[place]
        if not entry["filled"] or not (data is not None or self.trusts(place)):
            return None
        rows, columns = int(entry["rows"]), int(entry["columns"])
        start, stop = int(self._offsets[place]), int(self._offsets[place + 1])
        if rows * columns * 3 != stop - start:
            return None
        pixels = self._bytes[start:stop].reshape(rows, columns, 3)
        if not self.trusts(place):
            content = int(entry["fingerprint"])
            if _crc(entry, pixels) != int(entry["crc"]) or fingerprint(data or b"") != content:
                return None
            self._trusted[place], self._compared[place] = content, True
        return Kept(pixels, int(entry["height"]), int(entry["width"]), int(entry["fingerprint"]))

    def trusts(self, place: int) -> bool:
        """Whether what is kept of an image need not be compared with its file any more."""
        if self.kind == "ram":
            return True
        # Another run may have put the pixels of a changed file here since.
        unchanged = self._trusted[place] == self._entries["fingerprint"][place]
        return bool(self._compared[place] and unchanged)

    def put(self, place: int, pixels: NDArray[np.uint8], content: int) -> Kept | None:
        """Keep an image's upright pixels [H, W, 3]; ``content`` is its file's fingerprint.

        Returns what is kept; None where it has no place, as the header told another size.
        """
        height, width = pixels.shape[:2]
        rows, columns = (int(v) for v in _capped(np.array([height, width]), self.max_side))
        start, stop = int(self._offsets[place]), int(self._offsets[place + 1])
        if rows * columns * 3 != stop - start:
            return None
        kept = self._bytes[start:stop].reshape(rows, columns, 3)
        entry = self._entries[place : place + 1]
        entry["filled"] = 0
        if (rows, columns) == (height, width):
            kept[...] = pixels
        else:
            cv2.resize(pixels, (columns, rows), dst=kept, interpolation=cv2.INTER_AREA)
        entry[["fingerprint", "height", "width", "rows", "columns"]] = (
            content,
            height,
            width,
            rows,
            columns,
        )
        if self.kind == "disk":
            entry["crc"] = _crc(entry[0], kept)
        entry["filled"] = 1
        self._trusted[place], self._compared[place] = content, True
        return Kept(kept, height, width, content)


def _capped(sizes: NDArray[Any], max_side: int | None) -> NDArray[np.int64]:
    """Rows and columns [2, ...] of the copies that are kept of images of ``sizes`` [..., 2]."""
    sizes = np.moveaxis(np.asarray(sizes, np.int64), -1, 0)
    if max_side is None:
        return sizes
    shorter = np.maximum(sizes.min(0), 1)
    small = np.maximum(1, np.rint(sizes * (max_side / shorter))).astype(np.int64)
    return np.where((shorter > max_side) & (sizes.min(0) > 0), small, sizes)


def _estimate(source: ImageSource, exif: bool, max_side: int | None) -> int:
    """The bytes of all images from the headers of some."""
    count = len(source)
    some = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int))
    sizes = np.array([image_size(source.read(int(i)), exif=exif) or (0, 0) for i in some])
    rows, columns = _capped(sizes.reshape(-1, 2), max_side)
    return int((rows * columns * 3).mean() * count) if count else 0


def _refuse_beyond(needed: int, limit: int, kind: Kind, count: int, *, estimated: bool) -> None:
    # A sample may be wrong by some; the exact sum decides where it comes close.
    if needed <= limit * (1.2 if estimated else 1.0):
        return
    about = "about " if estimated else ""
    where = "memory" if kind == "ram" else "disk space"
    other = "data.cache: disk" if kind == "ram" else "another data.cache_dir"
    raise InputError(
        f"data.cache {kind}: the decoded images of {count} files take {about}{_size(needed)}, more "
        f"than the {_size(limit)} of {where} that may be used; cap their size with "
        f"data.cache_side, raise data.cache_limit_gb, or use {other} or data.cache: none"
    )


def _map(path: Path | None, size: int) -> NDArray[np.uint8]:
    """``size`` zero bytes that forked processes share, or those of the file ``path``.

    The disk's room is taken at once: a map whose file finds none later ends the process.
    """
    if path is None:
        return np.frombuffer(mmap.mmap(-1, size), np.uint8)
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "r+b") as file:
            if os.fstat(file.fileno()).st_size != size:
                file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    except OSError as error:
        if made:
            path.unlink(missing_ok=True)
        raise InputError(
            f"the cache {path} of {_size(size)} cannot be made ({error.strerror}); free space, or "
            "use another data.cache_dir or data.cache: none"
        ) from None


def _crc(entry: Any, pixels: NDArray[np.uint8]) -> int:
    """The checksum of an image's pixels and of what is said of them."""
    said = [int(entry[name]) for name in ("fingerprint", "height", "width", "rows", "columns")]
    return zlib.crc32(pixels.data, zlib.crc32(repr(said).encode()))


def _identity(source: ImageSource, exif: bool) -> str:
    """Names the images that a cache is for: their place, ids and orientation."""
    place = source.name if is_url(source.name) else os.path.abspath(source.name)
    return hashlib.sha256("\0".join([place, *source.ids, str(exif)]).encode()).hexdigest()


def _key(identity: str, max_side: int | None, offsets: NDArray[np.integer]) -> str:
    """Names a cache by all that decides its layout and its pixels; the contents have prints."""
    digest = hashlib.sha256(f"{identity} {DECODER} {max_side}".encode())
    digest.update(np.ascontiguousarray(offsets, "<i8").tobytes())
    return digest.hexdigest()[:32]


def made_for(cache: PixelCache, source: ImageSource, exif: bool) -> None:
    """Raise InputError for a cache of other images, or of another orientation."""
    if cache.identity != _identity(source, exif):
        raise InputError(
            f"the cache was made for other images than {source.name}, or with another exif; make "
            f"PixelCache with this source and exif={exif}"
        )


def _free_disk(place: Path) -> int:
    while not place.exists():
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise InputError(
            f"the cache folder {masked(str(place))} cannot be used: {error.strerror}"
        ) from None


def _size(count: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    power = 0 if count < 1 else min(int(math.log10(count)) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"
