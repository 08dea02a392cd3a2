"""What a store's content can be: rules that hold whatever its checksums say.

Checksums find damage. Who makes a store can put wrong content under right ones, so what is read is
held to these rules too: the manifest when a store is opened, records as they are read, the image
table once before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ferkd.store.features import FeatureFormat
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError

if TYPE_CHECKING:
    from ferkd.store.reader import LabelStore

REMEDY = "the store was not made by ferkd or was changed since; fetch it again or label again"


class Problem(NamedTuple):
    """One thing that is wrong: a file, image or crop of the store, and what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def outside(
    boxes: NDArray[np.integer], heights: NDArray[np.integer], widths: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Which boxes [..., 4] do not lie inside their images, bool [...]; the images' sizes in
    pixels broadcast with them."""
    # One side after the other: comparing whole columns is much cheaper than reducing short rows.
    sides = np.ascontiguousarray(np.moveaxis(boxes, -1, 0), np.int32)
    beyond = (sides[0] + sides[2] > heights.astype(np.int32)) | (
        sides[1] + sides[3] > widths.astype(np.int32)
    )
    return np.asarray(beyond | (np.minimum(sides[2], sides[3]) < 1))


OUTSIDE = "its box does not lie inside the image"


def require_inside(
    store: LabelStore, boxes: NDArray[np.integer], rows: NDArray[np.integer]
) -> None:
    """Raise InputError for a box [..., 4] outside of its image; ``rows`` broadcast with them."""
    table = store.images
    wrong = outside(boxes, table["height"][rows], table["width"][rows])
    if wrong.any():
        _refuse(store, int(np.broadcast_to(rows, wrong.shape)[wrong][0]), OUTSIDE)


def require_possible(
    store: LabelStore,
    form: RecordFormat | FeatureFormat,
    records: NDArray[Any],
    rows: NDArray[np.integer],
) -> None:
    """Raise InputError for a record that cannot be; the images' ``rows`` broadcast with them."""
    for wrong, what in form.impossible(records.reshape(-1)):
        if wrong.any():
            row = np.broadcast_to(rows, records.shape).reshape(-1)[int(wrong.argmax())]
            _refuse(store, int(row), what)


def _refuse(store: LabelStore, row: int, what: str) -> NoReturn:
    raise InputError(f"{store.path}: a crop of {store.ids[row]}: {what}; {REMEDY}")


def table_problems(store: LabelStore) -> Iterator[Problem]:
    """Ids in order, readable and unique; targets and sizes in range. Takes time by the image."""
    table = store.images
    geometry = store.manifest.geometry.settings
    classes = (len(geometry.class_names) or store.num_classes) if geometry.targets else 0
    ends = table["id_end"]
    last = int(ends[-1]) if len(ends) else 0
    if (ends[1:] < ends[:-1]).any() or last != store.manifest.ids.rows:
        yield Problem("images.npy", "column id_end does not rise to the end of ids.npy")
        return
    ids, previous, unreadable = store.ids, b"", False
    for row in range(len(store)):
        raw = ids.raw(row)
        if raw <= previous:
            yield Problem("ids.npy", f"image {row}, {raw!r}, does not come after the one before")
        try:
            raw.decode()
        except UnicodeDecodeError:
            unreadable = True
            yield Problem("ids.npy", f"the id of image {row} is not UTF-8: {raw!r}")
        previous = raw
    if unreadable:
        return
    targets = table["target"]
    for row in np.flatnonzero((targets < -1) | (targets >= classes) & (targets != -1)).tolist():
        yield Problem(ids[row], f"target {targets[row]} of {classes} classes")
    for row in np.flatnonzero((table["height"] == 0) | (table["width"] == 0)).tolist():
        yield Problem(ids[row], "has no pixels")
    for skip in store.manifest.skipped:
        if ids.find(skip.id) >= 0:
            yield Problem(skip.id, "is in the store, and in the list of images left out")


def require_table(store: LabelStore) -> None:
    """Raise InputError where the image table or the ids cannot be."""
    for problem in table_problems(store):
        raise InputError(f"{store.path}: {problem}; {REMEDY}")
