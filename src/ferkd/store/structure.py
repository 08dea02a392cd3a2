"""What a store's content can be: rules that hold whatever its checksums say.

Checksums find damage. Who makes a store can put wrong content under right ones, so what is read is
held to these rules too: the manifest when a store is opened, records as they are read, the image
table once before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def impossible(
    record: RecordFormat,
    records: NDArray[Any],
    heights: NDArray[np.integer],
    widths: NDArray[np.integer],
) -> Iterator[tuple[Any, str]]:
    """Which of the records [n] break a rule, bool [n], and the rule, for each rule.

    ``heights`` and ``widths`` [n] are of the records' images, in pixels.
    """
    box = records["box"]
    bottom, right = (box[:, i].astype(np.uint32) + box[:, i + 2] for i in (0, 1))
    outside = (bottom > heights) | (right > widths) | (box[:, 2] == 0) | (box[:, 3] == 0)
    yield outside, "its box does not lie inside the image"
    names = records.dtype.names or ()
    if "flip" in names:
        yield records["flip"] > 1, "its flip is neither 0 nor 1"
    if "classes" in names:
        # One class at a time: k is small, and a comparison of whole columns is much cheaper.
        classes = [records["classes"][:, i] for i in range(record.k)]
        above, twice = np.zeros(len(records), bool), np.zeros(len(records), bool)
        for i, column in enumerate(classes):
            above |= column >= record.num_classes
            for other in classes[:i] if record.k <= _FEW else ():
                twice |= column == other
        if record.k > _FEW:
            ordered = np.sort(records["classes"], axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        yield above, f"a class is not below {record.num_classes}"
        yield twice, "a class appears twice"
    if "gaps" in names:
        gaps = records["gaps"]
        if record.values != "u8":
            yield ~((gaps >= 0) & np.isfinite(gaps)).all(1), "a log-probability is no possible one"
        if not record.full:
            yield (gaps[:, 1:] < gaps[:, :-1]).any(1), "its classes are not in order"
    if "tail" in names and record.values != "u8":
        mass = records["tail"]
        yield ~((mass >= 0) & np.isfinite(mass)).all(1), "its tail's mass is no possible one"
    if "true" in names:
        yield (
            ~((records["true"] >= 0) & np.isfinite(records["true"])),
            "its truth is no possible one",
        )


_FEW = 10  # classes compared pair by pair


def require_possible(store: LabelStore, records: NDArray[Any], rows: NDArray[np.integer]) -> None:
    """Raise InputError for a record [n] of the images ``rows`` [n] that cannot be."""
    table = store.images
    heights, widths = table["height"][rows], table["width"][rows]
    for wrong, what in impossible(store.record, records, heights, widths):
        if wrong.any():
            row = int(rows[int(np.flatnonzero(wrong)[0])])
            raise InputError(f"{store.path}: a crop of {store.ids[row]}: {what}; {REMEDY}")


def table_problems(store: LabelStore) -> Iterator[Problem]:
    """Ids in order, readable and unique; targets and sizes in range. Takes time by the image."""
    table = store.images
    classes = store.num_classes if store.settings.targets else 0
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
