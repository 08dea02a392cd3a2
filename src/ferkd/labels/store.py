"""Reading a label store: random access to the crops and soft labels of any image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkd.errors import InputError
from ferkd.labels import manifest as manifests
from ferkd.labels.soft import SoftLabels

MANIFEST = "manifest.json"
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
        return self.raw(index % len(self)).decode()

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
    ``ids``; crops are numbered from 0 within an image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / MANIFEST
        if not file.is_file():
            state = "an unfinished" if (self.path / "settings.json").is_file() else "no"
            remedy = "finish it with ferkd label --resume" if state != "no" else "check the path"
            raise InputError(f"{self.path} holds {state} label store (no {MANIFEST}); {remedy}")
        self.manifest = manifests.from_bytes(file.read_bytes(), file)
        self.settings = self.manifest.settings
        self.record = self.settings.record.format
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: str | Path | LabelStore) -> LabelStore:
        """Open a store by its path; an open one is returned as it is. Raises InputError."""
        return path if isinstance(path, LabelStore) else cls(path)

    def __reduce__(self) -> tuple[type[LabelStore], tuple[Path]]:
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
    def bytes_on_disk(self) -> int:
        """All files of the store together, manifest included."""
        files = (self.manifest.images, self.manifest.ids, *self.manifest.records)
        return (self.path / MANIFEST).stat().st_size + sum(file.size for file in files)

    def records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """The raw records at (rows, crops); the two broadcast."""
        row, crop = np.broadcast_arrays(np.asarray(rows), np.asarray(crops))
        if row.size and (row.min() < 0 or row.max() >= len(self)):
            raise IndexError(f"image rows must lie in 0 .. {len(self) - 1}")
        files = self.manifest.records
        if len(files) == 1:
            return np.asarray(self._records(0)[row, crop])
        starts = np.cumsum([0, *(file.rows for file in files)])
        where = np.searchsorted(starts, row, side="right") - 1
        out = np.empty(row.shape, self.record.dtype)
        for number in np.unique(where):
            here = where == number
            out[here] = self._records(int(number))[row[here] - starts[number], crop[here]]
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
        """The soft labels of records [B] of the images ``rows`` [B]."""
        return self.record.decode(records, self.images["target"][rows] >= 0)

    def scan(self) -> Iterator[tuple[slice, NDArray[Any], SoftLabels]]:
        """Walk the store: (rows, records [n, crops], labels [n * crops]) a chunk at a time."""
        step = max(1, _CHUNK // self.crops_per_image)
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            records = self.records(rows[:, None], np.arange(self.crops_per_image)[None])
            repeated = np.repeat(rows, self.crops_per_image)
            labels = self.decode(records.reshape(-1), repeated)
            yield slice(start, start + len(rows)), records, labels

    def _records(self, number: int) -> NDArray[Any]:
        return self._map(self.manifest.records[number], self.record.dtype, (self.crops_per_image,))

    def _map(
        self, file: manifests.File, dtype: np.dtype[Any], row: tuple[int, ...]
    ) -> NDArray[Any]:
        if file.name not in self._maps:
            path = self.path / file.name
            try:
                array = np.load(path, mmap_mode="r" if file.rows else None, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(
                    f"{path} cannot be read ({error}); fetch the store again"
                ) from None
            if array.dtype != dtype or array.shape != (file.rows, *row):
                raise InputError(
                    f"{path} holds {array.shape} {array.dtype}, but the manifest says "
                    f"{(file.rows, *row)} {dtype}; the store is damaged, fetch it again"
                )
            self._maps[file.name] = array
        return self._maps[file.name]
