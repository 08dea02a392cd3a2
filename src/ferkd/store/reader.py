"""Reading a label store: random access to the crops and soft labels of any image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ferkd.store import manifest as manifests
from ferkd.store.features import FeatureFormat
from ferkd.store.ids import IMAGE as IMAGE
from ferkd.store.ids import Ids
from ferkd.store.records import RecordFormat
from ferkd.store.remote import MANIFEST, RemoteFolder, location
from ferkd.store.signals import StoredSignal, chosen_signals, within
from ferkd.store.signals import split_signals as split_signals
from ferkd.store.soft import SoftLabels
from ferkd.store.structure import require_inside
from ferkd.system.errors import InputError
from ferkd.system.files import read_plain
from ferkd.system.storage import SMALL_FILE

_CHUNK = 1 << 16  # crops decoded at a time when the whole store is scanned


class LabelStore:
    """A finished label store, opened for reading; files are mapped on first use.

    Opening reads the manifest alone, so its cost does not grow with the number of images. The
    object pickles as its path and reopens in each worker. Rows are images in the order of
    ``ids``; crops are numbered from 0 within an image. ``path`` is a folder or an fsspec URL,
    whose files come through a local cache (docs/remote.md).

    A store holds any number of signals. ``path#NAME`` (or ``signal``) chooses the one that
    :meth:`labels`, or :meth:`features`, reads; ``path#A,B`` one of each kind. Unchosen, the only
    one of a kind is read, and several are an InputError when they are asked for.
    """

    def __init__(
        self,
        path: str | Path | RemoteFolder,
        signal: str | None = None,
        kinds: tuple[manifests.Kind, ...] = get_args(manifests.Kind),
    ) -> None:
        place, named = (path, "") if isinstance(path, RemoteFolder) else split_signals(path)
        self.path = location(place)
        data = _manifest(self.path)
        self._manifest_bytes = len(data)
        self.manifest = manifests.from_bytes(data, f"{self.path}/{MANIFEST}")
        self.chosen = signal or named
        self._kinds = kinds
        chosen = chosen_signals(self.manifest, self.chosen, self.path)
        self._names = {kind: names for kind, names in chosen.items() if kind in kinds}
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: str | Path | RemoteFolder | LabelStore) -> LabelStore:
        """Open a store by its path or URL; an open one is returned as it is. Raises InputError."""
        return path if isinstance(path, LabelStore) else cls(path)

    def __reduce__(self) -> tuple[type[LabelStore], tuple[Any, ...]]:
        return LabelStore, (self.path, self.chosen, self._kinds)

    def of_kinds(self, *kinds: manifests.Kind) -> LabelStore:
        """The same store as if it held signals of these kinds alone: its classes and its truth are
        then not those of labels that are not read."""
        return LabelStore(self.path, self.chosen, kinds)

    def __len__(self) -> int:
        return self.manifest.images.rows

    def signal(self, name: str) -> StoredSignal:
        """A signal by its name; InputError where the store has none of it."""
        if name not in self.manifest.signals:
            raise InputError(
                f"{self.path} has no signal {name!r}; {manifests.listed(self.manifest)}"
            )
        return StoredSignal(self, name)

    def has(self, kind: manifests.Kind) -> bool:
        """Whether a signal of this kind is chosen, or the only one of its kind."""
        return isinstance(self._names.get(kind), str)

    def of_kind(self, kind: manifests.Kind) -> StoredSignal:
        """The signal of a kind that was chosen or is the only one. Raises InputError."""
        name = self._names.get(kind)
        if name is None:
            made = (
                "ferkd label --into" if kind == "labels" else "ferkd label --kind features --into"
            )
            raise InputError(f"{self.path} holds no {kind}; make them with {made} {self.path}")
        if not isinstance(name, str):
            raise InputError(
                f"{self.path} holds several signals of kind {kind} ({', '.join(name)}); choose one "
                f"by {self.path}#{name[0]}"
            )
        return StoredSignal(self, name)

    @cached_property
    def _labels(self) -> StoredSignal:
        return self.of_kind("labels")

    @cached_property
    def _features(self) -> StoredSignal:
        return self.of_kind("features")

    @property
    def record(self) -> RecordFormat:
        """The form of the labels."""
        form = self._labels.format
        assert isinstance(form, RecordFormat)
        return form

    @property
    def geometry(self) -> manifests.GeometrySettings:
        """What determined the images and their crops."""
        return self.manifest.geometry.settings

    @cached_property
    def settings(self) -> manifests.Settings:
        """What determined the geometry, and the labels where there are any, else the features."""
        kind: manifests.Kind = "labels" if self._names.get("labels") else "features"
        signal = self.of_kind(kind).settings if self._names.get(kind) else None
        return manifests.Settings.of(self.manifest.geometry.settings, signal)

    def settings_of(self, name: str) -> manifests.Settings:
        """What determined the geometry and this signal."""
        return manifests.Settings.of(self.manifest.geometry.settings, self.signal(name).settings)

    @property
    def identity(self) -> str:
        """SHA-256 that names the geometry and the chosen signals: others may come and go."""
        names = [name for name in self._names.values() if isinstance(name, str)]
        return manifests.checksum(self.manifest.only(names).without_tables)

    @property
    def crops_per_image(self) -> int:
        return self.manifest.geometry.settings.crops.count

    @property
    def num_classes(self) -> int:
        if self.has("labels"):
            return self.record.num_classes
        return len(self.manifest.geometry.settings.class_names)

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
        """Ground-truth classes, int32 [N], -1 for none; as :meth:`truth`."""
        return self.truth(slice(None)).astype(np.int32)

    def truth(self, rows: NDArray[np.integer] | slice) -> NDArray[np.int64]:
        """The ground-truth classes of some images, int64 [n], -1 for none: for all where the
        labels' classes are others than the images'."""
        targets = self.images["target"][rows].astype(np.int64)
        own = self.has("labels") and self._labels.settings.class_names is not None
        if own and self.manifest.geometry.settings.targets:
            return np.full_like(targets, -1)
        return np.asarray(targets)

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
        return self.manifest.files

    @property
    def bytes_on_disk(self) -> int:
        """All files of the store together, manifest included."""
        return self._manifest_bytes + sum(file.size for file in self.files)

    def local(self, file: manifests.File) -> AbstractContextManager[Path]:
        """The path of a data file on this machine, fetched if need be; good inside the block."""
        if isinstance(self.path, RemoteFolder):
            return self.path.hold(file, self.manifest.images, self.manifest.ids)
        return nullcontext(self.folder / file.name)

    def taken(
        self,
        files: Sequence[manifests.File],
        dtype: np.dtype[Any],
        inner: tuple[int, ...],
        width: int,
        rows: ArrayLike,
        crops: ArrayLike,
    ) -> NDArray[Any]:
        """Items of arrays ``[rows, width, *inner]`` that lie in ``files``, at (rows, crops).

        Copies, of shape ``[..., *inner]``. Raises IndexError for rows outside."""
        item = np.dtype((dtype, inner)).itemsize
        whole = np.dtype(f"V{item}") if item != 8 else np.dtype("<u8")
        place = within(rows, len(self), "image rows") * width + np.asarray(crops)

        def mapped(number: int) -> NDArray[Any]:
            array = self._map(files[number], dtype, (width, *inner))
            # Whole items: indexing would copy a structure field by field.
            return array.reshape(-1).view(whole)

        if len(files) == 1:
            out = mapped(0).take(place)
        else:
            starts = np.cumsum([0, *(file.rows for file in files)]) * width
            number = np.searchsorted(starts, place, side="right") - 1
            out = np.empty(place.shape, whole)
            for n in np.unique(number):
                here = number == n
                out[here] = mapped(int(n)).take(place[here] - starts[n])
        return np.ascontiguousarray(out)[..., None].view(dtype).reshape((*place.shape, *inner))

    def records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """The labels' records at (rows, crops), integers; the two broadcast. Raises IndexError,
        and InputError for a record that cannot be."""
        return self._labels.records(rows, crops)

    def raw_boxes(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.uint16]:
        """As :meth:`boxes`, as stored, wherever they lie."""
        count, files = self.crops_per_image, self.manifest.geometry.boxes
        crop = within(crops, count, "crops")
        return self.taken(files, np.dtype("<u2"), (4,), count, rows, crop)

    def boxes(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.int32]:
        """Crop boxes (top, left, height, width) in pixels, int32 [..., 4]. Raises InputError for
        one that does not lie inside its image."""
        boxes = self.raw_boxes(rows, crops).astype(np.int32)
        require_inside(self, boxes, np.asarray(rows))
        return boxes

    def flips(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.bool_]:
        """Whether crops are mirrored, bool [...]."""
        row = within(rows, len(self), "image rows")
        crop = within(crops, self.crops_per_image, "crops")
        table = self.packed_flips
        packed = table.reshape(-1).take(row * table.shape[1] + (crop >> 3))
        return (packed >> (crop & 7).astype(np.uint8) & 1).astype(bool)

    @property
    def packed_flips(self) -> NDArray[np.uint8]:
        """The flips as stored: [N, ceil(crops / 8)], crop j in bit j % 8 of byte j // 8."""
        width = -(-self.crops_per_image // 8)
        return self._map(self.manifest.geometry.flips, np.dtype("u1"), (width,))

    def labels(self, rows: ArrayLike, crops: ArrayLike) -> SoftLabels:
        """The soft labels of the crops at (rows, crops), flattened to [B]."""
        row, crop = np.broadcast_arrays(np.asarray(rows), np.asarray(crops))
        return self.decode(self.records(row, crop).reshape(-1), row.reshape(-1))

    def features(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[np.float32]:
        """The stored features of the crops at (rows, crops), float32 [..., d]; where they are of
        whole images, every crop of an image has the same. Raises InputError where there are none,
        and several of which none was chosen."""
        signal = self._features
        assert isinstance(signal.format, FeatureFormat)
        records = signal.records(rows, crops)
        return signal.format.decode(records.reshape(-1)).reshape(*records.shape, -1)

    def decode(self, records: NDArray[Any], rows: NDArray[np.integer]) -> SoftLabels:
        """The soft labels of records [B] of the images ``rows`` [B], the truth in its own slot."""
        targets = self.truth(rows)
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
        geometry, count = self.manifest.geometry, self.crops_per_image
        _ = self.images, self.ids, self.packed_flips
        for file in geometry.boxes:
            self._map(file, np.dtype("<u2"), (count, 4))
        for name in self.manifest.signals:
            signal = self.signal(name)
            for file in signal.files:
                self._map(file, signal.format.dtype, (signal.width,))
            for table in signal.stored.tables:
                signal.table(table)

    def table_of(self, file: manifests.Table) -> NDArray[np.float32]:
        """A side table, float32 [rows, dim]: a map."""
        return self._map(file, np.dtype("<f4"), (file.dim,))

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
                    # As a plain array over the map: numpy's memmap makes every step dearer.
                    array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
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
