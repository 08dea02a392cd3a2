"""What the tests of label stores elsewhere ask of them."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
from known_stores import CROPS

from ferkd.store import LabelStore

ROWS, COLUMNS = np.arange(5)[:, None], np.arange(CROPS)[None]
NAMES = ["images.npy", "ids.npy", "flips.npy"]
NAMES += [f"{name}-0000{i}.npy" for name in ("boxes", "labels") for i in range(3)]


def data_files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_file()}


def same(a: LabelStore, b: LabelStore) -> bool:
    return (
        list(a.ids) == list(b.ids)
        and (a.images == b.images).all()
        and (a.records(ROWS, COLUMNS) == b.records(ROWS, COLUMNS)).all()
    )


def counting(monkeypatch, file_system: str, method: str = "put_file") -> list[str]:
    """The names of the files that a file system is asked to send or get."""
    kind = fsspec.get_filesystem_class(file_system)
    real, names = getattr(kind, method), []

    def counted(self, source, target, **options):
        names.append(Path(source).name)
        return real(self, source, target, **options)

    monkeypatch.setattr(kind, method, counted)
    return names
