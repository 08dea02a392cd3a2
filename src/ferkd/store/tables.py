"""Side tables of a signal: a few vectors of its teacher's beside the records.

The mean of each class's features, or the class vectors of a vision-language teacher: float32
[rows, dim] under a name. A table belongs to its signal and is copied, published, fetched and
dropped with it. It comes and goes without a change to any other byte, and a store's identity does
not count it: who trains on a table has to record its checksum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkd.store import manifest as manifests
from ferkd.store.arrays import described, npy_file
from ferkd.store.claims import locked
from ferkd.store.features import MAX_DIM
from ferkd.store.reader import MANIFEST, LabelStore
from ferkd.store.structure import require_table
from ferkd.store.walk import places
from ferkd.system.errors import InputError
from ferkd.system.files import write_whole, writing

CLASS_MEANS = "class-means"


def add_table(path: str | Path, signal: str, name: str, values: NDArray[np.floating]) -> LabelStore:
    """Put the table ``values`` [rows, dim] beside the records of a signal of a local store.

    Its file is there before the manifest names it. Raises InputError for a name that is taken or
    none, and for numbers that are not finite or no table.
    """
    manifests.check_name(name)
    array = np.ascontiguousarray(values, "<f4")
    if array.ndim != 2 or not len(array) or not 1 <= array.shape[1] <= MAX_DIM:
        raise InputError(
            f"table {name} has the shape {values.shape}; give [rows, dim], with dim 1 to {MAX_DIM}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"table {name} holds numbers that are not finite; give finite ones")
    with locked(LabelStore(path).folder):
        store = LabelStore(path)
        held = store.signal(signal).stored
        if name in held.tables:
            raise InputError(
                f"{store.path}#{signal} has a table {name} already; give another name, or drop it"
            )
        file = store.folder / f"{signal}.{name}.npy"
        with npy_file(file, array.dtype, array.shape) as output:
            output.write(array.tobytes())
        table = manifests.Table(**described(file, len(array)).model_dump(), dim=array.shape[1])
        _replace(store, signal, dict(sorted({**held.tables, name: table}.items())))
        return LabelStore(path)


def drop_table(path: str | Path, signal: str, name: str) -> LabelStore:
    """Take a table away again. Raises InputError where there is none of the name."""
    with locked(LabelStore(path).folder):
        store = LabelStore(path)
        gone = store.signal(signal).table_file(name)
        held = store.signal(signal).stored.tables
        _replace(store, signal, {other: held[other] for other in held if other != name})
        with writing(store.folder / gone.name):
            (store.folder / gone.name).unlink(missing_ok=True)
        return LabelStore(path)


def _replace(store: LabelStore, signal: str, tables: dict[str, manifests.Table]) -> None:
    changed = store.signal(signal).stored.model_copy(update={"tables": tables})
    manifest = store.manifest.with_signal(signal, changed)
    write_whole(store.folder / MANIFEST, manifests.to_bytes(manifest))


def class_means(store: LabelStore) -> NDArray[np.float32]:
    """The mean of the stored features of each class's crops, float32 [C, d].

    The features are those of the store's chosen signal. Sums are in double precision. Raises
    InputError where there is no ground truth, or a class has no image.
    """
    settings = store.geometry
    signal = store.of_kind("features")
    if not (settings.targets and settings.class_names):
        raise InputError(f"{store.path} knows no ground truth, so there are no means of classes")
    require_table(store)
    classes = len(settings.class_names)
    sums, counts = np.zeros((classes, signal.dim)), np.zeros(classes, np.int64)
    targets = np.asarray(store.images["target"])
    for rows, crops in places(store, signal.format.dtype.itemsize):
        if signal.width == 1:
            rows, crops = rows[crops == 0], crops[crops == 0]
        known = targets[rows] >= 0
        rows, crops = rows[known], crops[known]
        np.add.at(sums, targets[rows], store.features(rows, crops).astype(np.float64))
        counts += np.bincount(targets[rows], minlength=classes)
    if len(empty := np.flatnonzero(counts == 0)):
        raise InputError(
            f"{store.path} has no image of {settings.class_names[empty[0]]}, so no mean of it; "
            "label images of every class"
        )
    return (sums / counts[:, None]).astype(np.float32)


def read_table(path: str | Path) -> NDArray[np.floating]:
    """The numbers [rows, dim] of a .npy file. Raises InputError; nothing pickled is executed."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            array = np.lib.format.read_array(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(f"{file} cannot be read as .npy numbers ({error}); check it") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{file} holds {array.shape} {array.dtype}; give numbers [rows, dim]")
    return array
