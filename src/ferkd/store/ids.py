"""The image table of a store and its ids, which are read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ferkd.store.structure import REMEDY
from ferkd.system.errors import InputError

IMAGE = np.dtype(
    [
        ("id_end", "<u8"),  # this image's id ends before this byte of ids.npy
        ("fingerprint", "<u8"),  # BLAKE2b-64 of the image file's bytes
        ("target", "<i4"),  # the ground-truth class, -1 for none
        ("height", "<u2"),  # pixels, as decoded
        ("width", "<u2"),
    ]
)


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
            return self.at(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return _text(self.raw(index % len(self)))

    def at(self, rows: NDArray[np.integer]) -> list[str]:
        """The ids of the images ``rows`` [n], 0 .. N - 1. Raises InputError for one not UTF-8."""
        ends = self._ends[rows].tolist()
        starts = np.where(rows > 0, self._ends[rows - 1], 0).tolist()
        text = self._text
        return [_text(text[a:b].tobytes()) for a, b in zip(starts, ends, strict=True)]

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


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InputError(f"the id {raw!r} is not UTF-8; {REMEDY}") from None
