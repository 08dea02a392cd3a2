"""The .npy files of a store: their length, their writing, their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ferkd.store import manifest as manifests
from ferkd.system.files import whole_file

FILE_BYTES = 1 << 30  # a records file is closed when the next part would take it past this


def grouped(counts: list[int], row_bytes: int) -> Iterator[list[int]]:
    """Consecutive parts, as many to a group as fit a records file; at least one group."""
    group: list[int] = []
    size = 0
    for member, count in enumerate(counts):
        if group and size + count * row_bytes > FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(member)
        size += count * row_bytes
    yield group


def described(path: Path, rows: int) -> manifests.File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return manifests.File(name=path.name, rows=rows, size=path.stat().st_size, sha256=digest)


@contextmanager
def npy_file(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A .npy file whose header is written and whose body the caller streams."""
    with whole_file(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        yield file
