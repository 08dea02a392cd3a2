"""Walking over all crops of a store in bounded memory, whatever the size of a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.store.reader import LabelStore

_CLASSES = 1 << 20  # stored classes held at a time
_CROPS = 1 << 16


def walk(
    store: LabelStore, *, checked: bool = True
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
    """Image rows [n], crop numbers [n] and records [n], in the store's order, a chunk at a time.

    Raises InputError for records that cannot be, unless ``checked`` is False.
    """
    step = max(1, min(_CROPS, _CLASSES // store.record.k))
    total = len(store) * store.crops_per_image
    for start in range(0, total, step):
        rows, crops = np.divmod(np.arange(start, min(start + step, total)), store.crops_per_image)
        read = store.records if checked else store.raw_records
        yield rows, crops, read(rows, crops)
