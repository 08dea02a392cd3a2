"""Signals of a finished store: added part by part, copied from another store, dropped.

Whoever reads the store meanwhile sees it without the signal or with it: its files are there before
the manifest names them, and go after it has stopped to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.store import manifest as manifests
from ferkd.store.arrays import described
from ferkd.store.claims import locked
from ferkd.store.parts import table_of
from ferkd.store.reader import MANIFEST, LabelStore
from ferkd.store.signals import StoredSignal
from ferkd.store.unfinished import ADDING, PARTS, SETTINGS, settings_in
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError
from ferkd.system.files import whole_file, write_whole, writing


class SignalWriter(StoreWriter):
    """Adds a signal to the finished store at ``path``, part by part, as a store is written.

    ``settings`` are those of the store with the new signal's own. The store stays as it is and
    readable until the last moment, when its manifest is replaced; what is there of another signal
    is not touched. A signal of that name is continued with ``resume``; with ``overwrite`` the old
    one is dropped first.
    """

    def _place(self) -> tuple[Path, tuple[str, ...]]:
        self._store = LabelStore(self.path)  # InputError where none is
        if self._store.chosen:
            raise InputError(
                f"{self.path} names a signal, but another one is added to the whole store; leave "
                f"out #{self._store.chosen}, and name the new one by --signal"
            )
        return self.path / f"{ADDING}{self.name}", self._store.geometry.class_names

    def _prepare(self) -> None:
        self._sweep()
        if self._overwrite:
            if self.work.exists():
                shutil.rmtree(self.work)
            if self.finished():
                _drop(LabelStore(self.path), self.name)
        begun = self.finished() or (self.work / SETTINGS).exists()
        if begun and not self._resume:
            raise InputError(
                f"{self.path} holds a signal {self.name} already, or a part of one; continue it "
                "with --resume, replace it with --overwrite, or give another name by --signal"
            )
        if self.finished():
            self._check_same(LabelStore(self.path, self.name).settings_of(self.name))
            return
        self.work.mkdir(exist_ok=True)
        if begun:
            self._check_same(self._written_settings())
        else:
            self._write_settings()
        (self.work / PARTS).mkdir(exist_ok=True)

    def _shared_places(self) -> list[Path]:
        return [self.work]

    def _written_settings(self) -> manifests.Settings:
        return settings_in(self.work)

    def finished(self) -> bool:
        return self.name in LabelStore(self.path).manifest.signals

    def write(
        self,
        part: int,
        ids: list[str],
        images: NDArray[Any],
        *of_crops: Any,
    ) -> None:
        images = images.copy()  # of which the ground truth is the store's: the labels may have none
        images["target"] = [self._store.images["target"][self._store.ids.find(i)] for i in ids]
        super().write(part, ids, images, *of_crops)

    def finish(self) -> LabelStore:
        if not self.finished():
            if missing := self.missing():
                raise RuntimeError(f"parts {missing[:5]} are not written yet")
            signal = self._joined_signal(self._counts())
            manifest = LabelStore(self.path).manifest.with_signal(self.name, signal)
            write_whole(self.path / MANIFEST, manifests.to_bytes(manifest))
        shutil.rmtree(self.work, ignore_errors=True)
        return LabelStore(self.path, self.name)

    def _counts(self) -> list[int]:
        """Images by part. Raises InputError where they or their crops are not the store's."""
        store, counts, at, end = LabelStore(self.path), [], 0, np.uint64(0)
        crops = np.arange(store.crops_per_image)
        for number in range(self.parts):
            with self._read(number) as part:
                table, _, flips = table_of(part, store.crops_per_image)
                boxes = part["boxes"]
            rows = np.arange(at, min(at + len(table), len(store)))
            table["id_end"] += end
            end = table["id_end"][-1] if len(table) else end
            packed = np.packbits(store.flips(rows[:, None], crops), axis=1, bitorder="little")
            mine = (table, boxes, flips)
            theirs = (store.images[rows], store.raw_boxes(rows[:, None], crops), packed)
            if not all(map(np.array_equal, mine, theirs)):
                raise InputError(
                    f"the images or crops of {self._part(number)} are not those of {self.path}; "
                    "use the images that were labelled, and start again with --overwrite"
                )
            counts.append(len(table))
            at += len(table)
        if at != len(store):
            raise InputError(f"{at} images for the {len(store)} of {self.path}; use the same")
        return counts


def drop(path: str | Path, name: str) -> None:
    """Take a signal out of a local store; its files go after the manifest that named them."""
    with locked(LabelStore(path).folder):
        _drop(LabelStore(path), name)  # as it is now: another process may have added to it


def _drop(store: LabelStore, name: str) -> None:
    gone = store.signal(name).stored.every_file
    left = [other for other in store.manifest.signals if other != name]
    write_whole(store.folder / MANIFEST, manifests.to_bytes(store.manifest.only(left)))
    for file in gone:
        with writing(store.folder / file.name):
            (store.folder / file.name).unlink(missing_ok=True)


def copy_signal(source: LabelStore, name: str, into: str | Path, new_name: str = "") -> LabelStore:
    """Add a signal of another store with the very same images and crops, byte by byte."""
    new_name, signal = manifests.check_name(new_name or name), source.signal(name)
    with locked(LabelStore(into).folder):
        return _copied(source, signal, LabelStore(into), new_name)


def _copied(source: LabelStore, signal: StoredSignal, target: LabelStore, name: str) -> LabelStore:
    if name in target.manifest.signals or (target.folder / f"{ADDING}{name}").exists():
        raise InputError(
            f"{target.path} holds a signal {name} already, or a part of one; give another name"
        )
    if source.manifest.geometry.content != target.manifest.geometry.content:
        raise InputError(
            f"{source.path} has other images or crops than {target.path}; a signal belongs to the "
            "crops that it was made of"
        )
    own = source.manifest.geometry.settings.class_names
    settings = signal.settings
    if settings.record and settings.class_names is None:
        same = own == target.manifest.geometry.settings.class_names
        settings = settings.model_copy(update={"class_names": None if same else own})
    numbered = [(file, f"{name}-{i:05d}.npy") for i, file in enumerate(signal.files)]
    files = tuple(_copy(source, file, target.folder / to) for file, to in numbered)
    tables = {}
    for table, file in signal.stored.tables.items():
        copied = _copy(source, file, target.folder / f"{name}.{table}.npy")
        tables[table] = manifests.Table(**copied.model_dump(), dim=file.dim)
    added = manifests.Signal(settings=settings, files=files, tables=tables)
    manifest = target.manifest.with_signal(name, added)
    write_whole(target.folder / MANIFEST, manifests.to_bytes(manifest))
    return LabelStore(target.path, name)


def _copy(source: LabelStore, file: manifests.File, to: Path) -> manifests.File:
    """Copy a file of a store, verified; what it is under its new name."""
    with source.local(file) as here, whole_file(to) as output, here.open("rb") as opened:
        shutil.copyfileobj(opened, output, 1 << 20)
    copied = described(to, file.rows)
    if copied.sha256 != file.sha256:
        raise InputError(f"{source.path}/{file.name} is damaged; fetch the store again")
    return copied
