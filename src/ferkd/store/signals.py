"""The signals of an open store: which one is read, and its records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkd.store import manifest as manifests
from ferkd.store.structure import require_possible
from ferkd.system.errors import InputError

if TYPE_CHECKING:
    from ferkd.store.reader import LabelStore


class StoredSignal:
    """One signal of an open store: the records that one teacher's answers became."""

    def __init__(self, store: LabelStore, name: str) -> None:
        self.store, self.name = store, name
        self.stored = store.manifest.signals[name]
        self.settings = self.stored.settings
        self.format = self.settings.format
        self.width = self.settings.width(store.crops_per_image)  # records of an image

    @property
    def files(self) -> tuple[manifests.File, ...]:
        return self.stored.files

    @property
    def dim(self) -> int:
        """The numbers of a stored vector; of features only."""
        assert self.settings.vectors is not None
        return self.settings.vectors.dim

    def table_file(self, name: str) -> manifests.Table:
        """The file of a side table; InputError where there is none of the name."""
        if name not in self.stored.tables:
            held = ", ".join(self.stored.tables) or "none"
            raise InputError(f"{self.store.path}#{self.name} has no table {name!r}; it has {held}")
        return self.stored.tables[name]

    def table(self, name: str) -> NDArray[np.float32]:
        """A side table, float32 [rows, dim], mapped (see :mod:`ferkd.store.tables`)."""
        return self.store.table_of(self.table_file(name))

    def records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """The records at (rows, crops), integers; the two broadcast. Raises IndexError, and
        InputError for a record that cannot be: a class outside, a NaN."""
        records = self.raw_records(rows, crops)
        require_possible(self.store, self.format, records, np.asarray(rows))
        return records

    def raw_records(self, rows: ArrayLike, crops: ArrayLike) -> NDArray[Any]:
        """As :meth:`records`, whatever they hold."""
        crop = within(crops, self.store.crops_per_image, "crops")
        if self.width == 1:
            crop = np.zeros_like(crop)
        return self.store.taken(self.files, self.format.dtype, (), self.width, rows, crop)


def split_signals(path: str | Path) -> tuple[str | Path, str]:
    """A store's path and the names behind its ``#``, "" without any: ``labels#NAME``.

    A folder whose own name has such an end is that folder.
    """
    text, mark, names = str(path).rpartition("#")
    if not mark or not re.fullmatch(rf"{manifests.NAME}(,{manifests.NAME})*", names):
        return path, ""
    if "://" not in str(path) and Path(path).expanduser().exists():
        return path, ""
    return (text if isinstance(path, str) else Path(text)), names


def chosen_signals(
    manifest: manifests.Manifest, names: str, where: object
) -> dict[manifests.Kind, str | list[str]]:
    """The signal of each kind: the one named, or the only one; a list where there are several."""
    chosen: dict[manifests.Kind, str | list[str]] = {}
    for name, signal in manifest.signals.items():
        kind = signal.settings.kind
        former = chosen.get(kind, [])
        chosen[kind] = [*([former] if isinstance(former, str) else former), name]
    chosen = {kind: of[0] if len(of) == 1 else of for kind, of in chosen.items()}
    named: set[manifests.Kind] = set()
    for name in names.split(",") if names else ():
        if name not in manifest.signals:
            raise InputError(f"{where} has no signal {name!r}; {manifests.listed(manifest)}")
        kind = manifest.signals[name].settings.kind
        if kind in named:
            raise InputError(f"{names}: two signals of kind {kind}; name one of a kind")
        named.add(kind)
        chosen[kind] = name
    return chosen


def within(numbers: ArrayLike, count: int, what: str) -> NDArray[np.int64]:
    """Integers as int64, refused outside 0 .. count - 1."""
    array = np.asarray(numbers).astype(np.int64, casting="same_kind", copy=False)
    if array.size and (array.min() < 0 or array.max() >= count):
        raise IndexError(f"{what} must lie in 0 .. {count - 1}")
    return array
