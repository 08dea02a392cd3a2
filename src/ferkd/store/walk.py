"""Walking over all crops of a store in bounded memory, whatever the size of a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.store.reader import LabelStore

_CLASSES = 1 << 20  # stored classes held at a time
_CROPS = 1 << 16
_BYTES = 1 << 23


def places(store: LabelStore, item: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Image rows [n] and crop numbers [n] of all crops, in the store's order, as many at a time
    as have a few megabytes with ``item`` bytes each."""
    yield from _places(store, max(1, min(_CROPS, _BYTES // item)))


def walk(
    store: LabelStore,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
    """Image rows [n], crop numbers [n] and the labels' records [n], a chunk at a time.

    Raises InputError for records that cannot be.
    """
    for rows, crops in _places(store, max(1, min(_CROPS, _CLASSES // store.record.k))):
        yield rows, crops, store.records(rows, crops)


def _places(store: LabelStore, step: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    total = len(store) * store.crops_per_image
    for start in range(0, total, step):
        yield np.divmod(np.arange(start, min(start + step, total)), store.crops_per_image)
