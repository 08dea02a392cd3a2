"""Reading a label store: random access to the crops and soft labels of any image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from stat import S_ISREG
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ferkd.store import manifest as manifests
from ferkd.store.remote import MANIFEST, RemoteFolder, location
from ferkd.store.soft import SoftLabels
from ferkd.store.structure import REMEDY, require_possible
from ferkd.system.errors import InputError
from ferkd.system.files import read_plain
from ferkd.system.storage import SMALL_FILE

IMAGE = np.dtype(
    [
        ("id_end", "<u8"),  # this image's id ends before this byte of ids.npy
        ("fingerprint", "<u8"),  # BLAKE2b-64 of the image file's bytes
        ("target", "<i4"),  # the ground-truth class, -1 for none
        ("height", "<u2"),  # pixels, as decoded
        ("width", "<u2"),
    ]
)
_CHUNK = 1 << 16  # crops decoded at a time when the whole store is scanned


class Ids(Sequence[str]):
    """The image ids of a store, in order, read from the map on demand."""

    def __init__(self, ends: NDArray[np.uint64], text: NDArray[np.uint8]) -> None:
        self._ends, self._text = ends, text

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, row: int) -> bytes:
        """The id of image ``row`` as UTF-8."""
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        raw = self.raw(index % len(self))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise InputError(f"the id of image {index} is {raw!r}, not UTF-8; {REMEDY}") from None

    def find(self, image_id: str) -> int:
        """The row of an image, by bisection (ids are sorted); -1 when it is not there."""
        wanted, low, high = image_id.encode(), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.raw(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self.raw(low) == wanted else -1


class LabelStore:
    """A finished label store, opened for reading; files are mapped on first use.

    Opening reads the manifest alone, so its cost does not grow with the number of images. The
    object pickles as its path and reopens in each worker. Rows are images in the order of
    ``ids``; crops are numbered from 0 within an image. ``path`` is a folder or an fsspec URL,
    whose files come through a local cache (docs/remote.md).
    """

    def __init__(self, path: str | Path | RemoteFolder) -> None:
        self.path = location(path)
        data = _manifest(self.path)
        self._manifest_bytes = len(data)
        self.manifest = manifests.from_bytes(data, f"{self.path}/{MANIFEST}")
        self.settings = self.manifest.settings
        self.record = self.settings.record.format
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: str | Path | RemoteFolder | LabelStore) -> LabelStore:
        """Open a store by its path or URL; an open one is returned as it is. Raises InputError."""
        return path if isinstance(path, LabelStore) else cls(path)

    def __reduce__(self) -> tuple[type[LabelStore], tuple[Path | RemoteFolder]]:
        return LabelStore, (self.path,)

    def __len__(self) -> int:
        return self.manifest.images.rows

    @property
    def crops_per_image(self) -> int:
        return self.settings.crops.count

    @property
    def num_classes(self) -> int:
        return self.record.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.settings.class_names

    @property
    def images(self) -> NDArray[Any]:
        """The image table: a mapped structured array [N] of dtype :data:`IMAGE`."""
        return self._map(self.manifest.images, IMAGE, ())

    @property
    def ids(self) -> Ids:
        return Ids(self.images["id_end"], self._map(self.manifest.ids, np.dtype("u1"), ()))

    @property
    def targets(self) -> NDArray[np.int32]:
        """Ground-truth classes, int32 [N], -1 for none."""
        return np.asarray(self.images["target"], dtype=np.int32)

    @property
    def folder(self) -> Path:
        """The store's local folder; InputError for a remote store, of which there is none."""
        if isinstance(self.path, RemoteFolder):
            raise InputError(
                f"{self.path} is not on this machine, which this needs; fetch the store first "
                "(ferkd fetch) and give the folder"
            )
        return self.path

    @property
    def files(self) -> tuple[manifests.File, ...]:
        """All data files."""
        return (self.manifest.images, self.manifest.ids, *self.manifest.records)

    @property
    def bytes_on_disk(self) -> int:
        """All files of the store together, manifest included."""
        return self._manifest_bytes + sum(file.size for file in self.files)

    def local(self, file: manifests.File) -> AbstractContextManager[Path]:
        """The path of a data file on this machine, fetched if need be; good inside the block."""
        if isinstance(self.path, RemoteFolder):
            return self.path.hold(file, self.manifest.images, self.manifest.ids)
        return nullcontext(self.folder / file.name)

    def records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """The records at (rows, crops), integers; the two broadcast. Raises IndexError, and
        InputError for a record that cannot be: a class or a box outside, a NaN."""
        records = self.raw_records(rows, crops)
        row = np.broadcast_to(np.asarray(rows), records.shape)
        require_possible(self, records.reshape(-1), row.reshape(-1))
        return records

    def raw_records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """As :meth:`records`, whatever they hold."""
        row = _within(rows, len(self), "image rows")
        place = row * self.crops_per_image + _within(crops, self.crops_per_image, "crops")
        # `take` copies whole records; indexing with arrays would copy them field by field.
        files = self.manifest.records
        if len(files) == 1:
            return np.asarray(self._records(0).reshape(-1).take(place))
        starts = np.cumsum([0, *(file.rows for file in files)]) * self.crops_per_image
        number = np.searchsorted(starts, place, side="right") - 1
        out = np.empty(place.shape, self.record.dtype)
        whole = out.view(f"V{out.itemsize}")
        for n in np.unique(number):
            here = number == n
            taken = self._records(int(n)).reshape(-1).take(place[here] - starts[n])
            whole[here] = taken.view(whole.dtype)
        return out

    def boxes(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.int32]:
        """Crop boxes (top, left, height, width) in pixels, int32 [..., 4]."""
        return self.records(rows, crops)["box"].astype(np.int32)

    def flips(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.bool_]:
        """Whether crops are mirrored, bool [...]."""
        return self.record.flips(self.records(rows, crops))

    def labels(self, rows: ArrayLike, crops: ArrayLike) -> SoftLabels:
        """The soft labels of the crops at (rows, crops), flattened to [B]."""
        row, crop = np.broadcast_arrays(np.asarray(rows), np.asarray(crops))
        return self.decode(self.records(row, crop).reshape(-1), row.reshape(-1))

    def decode(self, records: NDArray[Any], rows: NDArray[np.integer]) -> SoftLabels:
        """The soft labels of records [B] of the images ``rows`` [B], the truth in its own slot."""
        targets = self.images["target"][rows].astype(np.int64)
        return self.record.decode(records, targets >= 0).with_truth(torch.from_numpy(targets))

    def scan(self) -> Iterator[tuple[slice, NDArray[Any], SoftLabels]]:
        """Walk the store: (rows, records [n, crops], labels [n * crops]) a chunk at a time."""
        step = max(1, _CHUNK // self.crops_per_image)
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            records = self.records(rows[:, None], np.arange(self.crops_per_image)[None])
            repeated = np.repeat(rows, self.crops_per_image)
            labels = self.decode(records.reshape(-1), repeated)
            yield slice(start, start + len(rows)), records, labels

    def map_all(self) -> None:
        """Map every file now; raises InputError for one that is not what the manifest says."""
        _ = self.images, self.ids, [self._records(n) for n in range(len(self.manifest.records))]

    def _records(self, number: int) -> NDArray[Any]:
        return self._map(self.manifest.records[number], self.record.dtype, (self.crops_per_image,))

    def _map(
        self, file: manifests.File, dtype: np.dtype[Any], row: tuple[int, ...]
    ) -> NDArray[Any]:
        if (mapped := self._maps.get(file.name)) is not None:
            return mapped
        where = f"{self.path}/{file.name}"
        with self.local(file) as path:
            try:
                if (status := path.stat()).st_size != file.size or not S_ISREG(status.st_mode):
                    raise ValueError(f"it is no plain file of {file.size} bytes")
                # Not np.load, which also opens zip archives. An empty file cannot be mapped.
                if file.rows:
                    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
                else:
                    with path.open("rb") as opened:
                        array = np.lib.format.read_array(opened, allow_pickle=False)
            except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
                raise InputError(
                    f"{where} cannot be read ({error}); fetch the store again"
                ) from None
        if array.dtype != dtype or array.shape != (file.rows, *row):
            raise InputError(
                f"{where} holds {array.shape} {array.dtype}, but the manifest says "
                f"{(file.rows, *row)} {dtype}; the store is damaged, fetch it again"
            )
        self._forget_evicted()
        self._maps[file.name] = array
        return array

    def _forget_evicted(self) -> None:
        """Unmap what the cache gave up, so that its bytes on the disk are free."""
        if isinstance(folder := self.path, RemoteFolder):
            for file in self.files:
                if file.name in self._maps and not folder.holds(file):
                    self._maps.pop(file.name, None)


def _manifest(path: Path | RemoteFolder) -> bytes:
    if isinstance(path, RemoteFolder):
        return path.read_manifest()
    if not (path / MANIFEST).is_file():
        state = "an unfinished" if (path / "settings.json").is_file() else "no"
        remedy = "finish it with ferkd label --resume" if state != "no" else "check the path"
        raise InputError(f"{path} holds {state} label store (no {MANIFEST}); {remedy}")
    try:
        return read_plain(path / MANIFEST, SMALL_FILE)
    except OSError as error:
        raise InputError(
            f"{path / MANIFEST} cannot be read: {error.strerror}; fetch the store again"
        ) from None


def _within(numbers: ArrayLike, count: int, what: str) -> NDArray[np.int64]:
    """Integers as int64, refused outside 0 .. count - 1."""
    array = np.asarray(numbers).astype(np.int64, casting="same_kind", copy=False)
    if array.size and (array.min() < 0 or array.max() >= count):
        raise IndexError(f"{what} must lie in 0 .. {count - 1}")
    return array
