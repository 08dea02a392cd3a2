"""New stores out of finished ones, without a teacher: fewer crops, fewer classes, coarser numbers.

What is common to all of them stands here too: they are written part by part through
:class:`StoreWriter`, so memory is bounded and a kill loses at most one part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter
from ferkd.store.reader import LabelStore
from ferkd.store.records import RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError

_CELLS = 1 << 22  # stored numbers decoded at a time
Progress = Callable[[int, int], None]  # images done, of all


def subset(
    store: str | Path | LabelStore,
    out: str | Path,
    *,
    crops: int | None = None,
    top_k: int | None = None,
    values: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LabelStore:
    """Write a smaller store to ``out`` without labelling again; None keeps what the store has.

    ``crops`` keeps the first crops of each image, ``top_k`` the most probable classes (the others
    join the tail), ``values`` a coarser number type. With ``crops`` alone the result is what
    labelling that many crops from the start gives, manifest included, but for the float rounding
    of another batch composition. Otherwise numbers are rounded a second time, so the manifest's
    teacher lists the former form under ``encoded_before``. Raises InputError for what the store
    does not hold.
    """
    store = LabelStore.open(store)
    named = [store.signal(name).settings.kind for name in store.chosen.split(",") if name]
    if named == ["features"]:  # and not the store's labels, which nobody named
        store = store.of_kinds("features")
    if crops is not None and store.geometry.crops.is_map:
        raise InputError(
            f"crops is {crops}, but {store.path} holds label maps, whose cells belong together; "
            "leave it out, and give top_k or values for a smaller store"
        )
    kept = _smaller("crops", crops, store.crops_per_image, store)
    form = None
    if store.has("features") and not store.has("labels"):
        if top_k is not None or values is not None:
            raise InputError(f"{store.path} holds features and no labels; give crops alone")
        signal = store.of_kind("features")
    else:
        signal = store.of_kind("labels")
        form = _form(store, top_k, values)
    update: dict[str, Any] = {"crops": store.geometry.crops.model_copy(update={"count": kept})}
    if form is not None and form != store.record:
        made = store.settings.teacher
        before = [*made.get("encoded_before", ()), store.settings.labels.model_dump()]
        update["record"] = manifests.Record(**vars(form))
        update["teacher"] = {**made, "encoded_before": before}
    settings = store.settings.model_copy(update=update)
    source = store

    def records(rows: NDArray[np.int64]) -> NDArray[Any]:
        old = signal.records(rows[:, None], np.arange(signal.settings.width(kept)))
        return old if form is None or form == source.record else _anew(source, rows, old, form)

    return rewrite(
        store,
        out,
        settings,
        records,
        signal=signal.name,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _form(store: LabelStore, top_k: int | None, values: str | None) -> RecordFormat:
    """The form of a smaller store's labels. Raises InputError for what the store does not hold."""
    form = RecordFormat.choose(
        _smaller("top_k", top_k, store.record.k, store),
        store.num_classes,
        values or store.record.values,
        store.record.tail,
    )
    as_stored = RecordFormat(form.k, form.num_classes, store.record.values, form.tail)
    if form.dtype.itemsize > as_stored.dtype.itemsize:
        raise InputError(
            f"values {form.values!r} is finer than the {store.record.values!r} of {store.path}, "
            "which adds bytes and no knowledge; give a coarser one or none"
        )
    return form


def _smaller(name: str, wanted: int | None, held: int, store: LabelStore) -> int:
    if wanted is not None and not 1 <= wanted <= held:
        remedy = (
            "; add crops with ferkd label --add-to" if name == "crops" and wanted > held else ""
        )
        raise InputError(f"{name} is {wanted}; {store.path} holds {held}: give 1 to {held}{remedy}")
    return held if wanted is None else wanted


def _anew(
    store: LabelStore, rows: NDArray[np.int64], records: NDArray[Any], form: RecordFormat
) -> NDArray[Any]:
    new = np.empty(records.shape, form.dtype)
    for some in chunks(len(rows), records.shape[1] * store.record.k):
        labels = decoded(store, rows[some], records[some])
        new[some] = form.encode(labels).reshape(-1, records.shape[1])
    return new


def decoded(store: LabelStore, rows: NDArray[np.integer], records: NDArray[Any]) -> SoftLabels:
    """Labels [n * crops] of the images ``rows`` [n] with records [n, crops].

    Full records, which need no value of their own for the true class, get it from all values.
    """
    targets = np.repeat(store.truth(rows), records.shape[1])
    labels = store.record.decode(records.reshape(-1), targets >= 0)
    if not store.record.full:
        return labels
    return SoftLabels.from_logits(labels.log_probs, torch.from_numpy(targets))


def chunks(count: int, cells: int) -> list[slice]:
    """Slices that cover 0 .. count, each of few enough rows of ``cells`` numbers."""
    step = max(1, _CELLS // max(1, cells))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def rewrite(
    store: LabelStore,
    out: str | Path,
    settings: manifests.Settings,
    records: Callable[[NDArray[np.int64]], NDArray[Any]],
    *,
    signal: str | None = None,
    into: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LabelStore:
    """A store of the images of ``store``, whose records [n, crops] of n rows ``records`` gives, as
    the signal of that name; ``into`` adds it to the store at ``out``, of the same crops.

    Parts fall where labelling puts them, so files are split at the same images.
    """
    layout = Layout(store)
    kind = SignalWriter if into else StoreWriter
    if not into:
        refuse_inside(out, [store])
    every = np.arange(settings.crops.count)
    with kind(
        out, settings, layout.total, signal=signal, resume=resume, overwrite=overwrite
    ) as writer:
        for number in writer.missing():
            rows, skipped = layout.part(writer.part_range(number))
            here = slice(rows.start, rows.stop)
            numbers = np.arange(rows.start, rows.stop)
            table = store.images[here].copy()
            if not settings.targets:  # the labels' classes are others than the images'
                table["target"] = -1
            boxes = store.boxes(numbers[:, None], every)
            flips = store.flips(numbers[:, None], every)
            new = records(numbers)
            writer.write(number, store.ids[here], table, boxes, flips, new, skipped)
            if progress:
                progress(writer.part_range(number).stop, layout.total)
        return writer.finish()


def refuse_inside(out: str | Path, stores: Sequence[LabelStore]) -> None:
    """Raise InputError when ``out`` is the folder of one of the stores that are to be read."""
    for store in stores:
        same_text = str(out).rstrip("/") == str(store.path).rstrip("/")
        if same_text or Path(out).resolve() == Path(str(store.path)).resolve():
            raise InputError(
                f"{out} is itself one of the stores to read; give --out a new folder, and remove "
                "the old one when the new one is there"
            )


class Layout:
    """Where the images of a finished store stood among those offered, skipped ones included.

    Ids are sorted, so the place of a skipped one follows from its id.
    """

    def __init__(self, store: LabelStore) -> None:
        self._skipped = sorted(store.manifest.skipped, key=lambda s: s.id)
        ids = store.ids
        self._places = [bisect_left(ids, s.id) + j for j, s in enumerate(self._skipped)]
        self.total = len(store) + len(self._skipped)

    def part(self, places: range) -> tuple[range, list[manifests.Skipped]]:
        """The rows of the store and the skipped images at these places."""
        first, last = (bisect_left(self._places, place) for place in (places.start, places.stop))
        return range(places.start - first, places.stop - last), self._skipped[first:last]
