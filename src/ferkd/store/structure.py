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
    boxes: NDArray[np.uint16], heights: NDArray[np.integer], widths: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Which boxes [n, 4] do not lie inside their images of these sizes in pixels, bool [n]."""
    bottom, right = (boxes[:, i].astype(np.uint32) + boxes[:, i + 2] for i in (0, 1))
    wrong = (bottom > heights) | (right > widths) | (boxes[:, 2] == 0) | (boxes[:, 3] == 0)
    return np.asarray(wrong)


OUTSIDE = "its box does not lie inside the image"


def require_inside(store: LabelStore, boxes: NDArray[np.uint16], rows: NDArray[np.integer]) -> None:
    """Raise InputError for a box [n, 4] outside of its image, one of ``rows`` [n]."""
    table = store.images
    wrong = outside(boxes, table["height"][rows], table["width"][rows])
    if wrong.any():
        _refuse(store, int(rows[int(wrong.argmax())]), OUTSIDE)


def require_possible(
    store: LabelStore,
    form: RecordFormat | FeatureFormat,
    records: NDArray[Any],
    rows: NDArray[np.integer],
) -> None:
    """Raise InputError for a record [n] of the images ``rows`` [n] that cannot be."""
    for wrong, what in form.impossible(records):
        if wrong.any():
            _refuse(store, int(rows[int(wrong.argmax())]), what)


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
