"""Writing a label store so that a kill at any instant loses at most one part.

While labelling, each part of ``part_images`` images is one file under ``parts/``, written whole
and renamed into place. When all are there they are joined into the store's files, the manifest
last: a folder with a manifest is a finished store. A signal that is added to a finished store has
its parts under ``adding-NAME/``, and the manifest is replaced when its files are there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ferkd.images import ImageSource, fingerprint
from ferkd.store import manifest as manifests
from ferkd.store.arrays import described, grouped, npy_file
from ferkd.store.claims import LOCK, refuse_shared, release, take
from ferkd.store.ids import IMAGE, Ids
from ferkd.store.parts import opened, part_members, skipped_of, table_of
from ferkd.store.place import refuse_inside_store
from ferkd.store.reader import MANIFEST, LabelStore
from ferkd.store.unfinished import ADDING, PARTS, SETTINGS, settings_in
from ferkd.system.errors import InputError
from ferkd.system.files import (
    is_temporary,
    make_folder,
    sweep,
    whole_file,
    write_whole,
    writing,
)
from ferkd.system.storage import as_local, masked

_OF_SIGNALS = re.compile(rf"{manifests.NAME}(-\d{{5}}|\.{manifests.NAME})\.npy(\.tmp)?")


class StoreWriter:
    """Writes one store, part by part. Use as a context manager: it holds the store's lock.

    The store has the geometry of ``settings`` and one signal, named ``signal`` (None: as its kind).

    ``total`` is the number of images offered, ``settings.part_images`` of them to a part, in
    order. An existing unfinished store is continued with ``resume`` and replaced with
    ``overwrite``; without either it is refused, as is any folder that is not a label store.
    """

    _shared = False  # with other processes, see ferkd.store.sharing

    def __init__(
        self,
        path: str | Path,
        settings: manifests.Settings,
        total: int,
        *,
        signal: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        local = as_local(path)
        if local is None:
            raise InputError(
                f"{masked(path)} is a URL; write the labels to a folder, then publish it"
            )
        self.path = local
        self.name = manifests.check_name(signal or ("labels" if settings.record else "features"))
        self.settings = settings
        self.total = total
        self._resume, self._overwrite = resume, overwrite
        self._lock = FileLock(self.path / LOCK)
        self._patience = 0.0  # seconds to wait for another process's lock
        # Where the settings and the parts are until all is finished; the geometry's classes.
        self.work, self._class_names = self._place()

    def _place(self) -> tuple[Path, tuple[str, ...]]:
        return self.path, self.settings.geometry.class_names

    @property
    def parts(self) -> int:
        """The number of parts of the whole store."""
        return -(-self.total // self.settings.part_images)

    def __enter__(self) -> Self:
        refuse_inside_store(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; the label store needs a folder of its own")
        contents = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        others = {name for name in contents if name != LOCK and not is_temporary(name)}
        if others and not contents & {MANIFEST, SETTINGS}:
            raise InputError(
                f"{self.path} holds other files; give --out a new or empty folder for the labels"
            )
        take(self._lock, self.path, ", then continue with --resume", self._patience)
        try:
            if not self._shared:
                refuse_shared(*self._shared_places())
            with writing(self.path):
                self._prepare()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._unlock()

    def _shared_places(self) -> list[Path]:
        """The folders that other processes may be writing parts to, which this one would break."""
        return [self.path, *self.path.glob(f"{ADDING}*")]

    def _unlock(self) -> None:
        """Release the lock; a finished store keeps no trace of it."""
        release(self._lock, remove=(self.path / MANIFEST).exists())

    def _prepare(self) -> None:
        self._sweep()
        begun = (self.path / MANIFEST).exists() or (self.work / SETTINGS).exists()
        if begun and self._overwrite:
            # In this order a kill leaves the old store, or its folder with the new settings and
            # no part: never old labels under new settings, never a folder that is not known again.
            if (self.work / PARTS).exists():
                shutil.rmtree(self.work / PARTS)
            self._write_settings()
            (self.path / MANIFEST).unlink(missing_ok=True)
        elif begun and not self._resume:
            raise InputError(
                f"{self.path} holds a label store already; continue it with --resume, or replace "
                "it with --overwrite"
            )
        elif begun:
            self._check_same(self._written_settings())
        else:
            self._write_settings()
        if not self.finished():
            make_folder(self.work / PARTS)

    def _sweep(self) -> None:
        """Remove what kills have left, where no other process may be writing it now."""
        if not self._shared:
            for folder in (self.path, self.work, self.work / PARTS):
                sweep(folder)

    def _write_settings(self) -> None:
        text = json.dumps(self.settings.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_whole(self.work / SETTINGS, text.encode())

    def _written_settings(self) -> manifests.Settings:
        if (self.path / MANIFEST).exists():
            return LabelStore(self.path, self.name).settings_of(self.name)
        return settings_in(self.work)

    def _check_same(self, old: manifests.Settings) -> None:
        before, now = old.flat(), self.settings.flat()
        changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        if changed == ["images.listing"]:
            raise InputError(
                f"the {self.total} images are not those that {self.path} was begun with (files "
                "were added, removed or renamed); restore them, or start again with --overwrite"
            )
        if changed:
            listed = ", ".join(
                f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed[:4]
            )
            raise InputError(
                f"{self.path} was begun with other settings ({listed}); resume with the same "
                "settings, or start again with --overwrite"
                + (
                    "; more crops are added by --add-to into a new folder"
                    if changed == ["crops.count"]
                    else ""
                )
            )

    def finished(self) -> bool:
        """Whether the store is complete."""
        return (self.path / MANIFEST).exists()

    def missing(self) -> list[int]:
        """The numbers of the parts still to be written."""
        if self.finished():
            return []
        absent = [number for number in range(self.parts) if not self._part(number).exists()]
        # Another process may have joined all parts since, which are gone then.
        return [] if absent and self.finished() else absent

    def claimed(self) -> Iterator[int]:
        """The parts that are this process's to write: all that are missing."""
        yield from self.missing()

    def part_range(self, part: int) -> range:
        """The images, by their place among those offered, that belong to a part."""
        start = part * self.settings.part_images
        return range(start, min(start + self.settings.part_images, self.total))

    def write(
        self,
        part: int,
        ids: list[str],
        images: NDArray[Any],
        boxes: NDArray[np.integer],
        flips: NDArray[np.bool_],
        records: NDArray[Any],
        skipped: list[manifests.Skipped],
    ) -> None:
        """Write one part: n ids, image rows [n] (less ``id_end``), boxes [n, crops, 4], flips
        [n, crops] and the signal's records [n, crops], or [n, 1] where they are of whole images."""
        with whole_file(self._part(part)) as file:
            members: Any = part_members(ids, images, boxes, flips, records, skipped)
            np.savez(file, **members)

    def skipped(self) -> list[manifests.Skipped]:
        """The images left out so far, of all parts written."""
        there = (number for number in range(self.parts) if self._part(number).exists())
        return [skip for number in there for skip in self._skipped_of(number)]

    def _skipped_of(self, number: int) -> list[manifests.Skipped]:
        with self._read(number) as part:
            return skipped_of(part)

    def drop_changed(self, source: ImageSource) -> list[str]:
        """Remove the parts whose images are not, or no longer, what was labelled.

        Reads every image labelled so far; returns the ids whose content differs now. A part with
        images that were left out is removed as well, for they may have been repaired.
        """
        changed: list[str] = []
        for number in range(self.parts):
            if not self._part(number).exists():
                continue
            with self._read(number) as part:
                table, text, _ = table_of(part, self.settings.crops.count)
            ids = Ids(table["id_end"], text)
            labelled = {ids[row]: int(table["fingerprint"][row]) for row in range(len(ids))}
            differing = [
                source.ids[place]
                for place in self.part_range(number)
                if source.ids[place] in labelled
                and labelled[source.ids[place]] != fingerprint(source.read(place))
            ]
            if differing or self._skipped_of(number):
                with writing(self._part(number)):
                    self._part(number).unlink()
            changed += differing
        return changed

    @contextmanager
    def _read(self, number: int) -> Iterator[Any]:
        """An open part; its members are checked against their CRC-32 as they are read."""
        with opened(self._part(number)) as part:
            yield part

    def finish(self) -> LabelStore:
        """Join the parts into the finished store. Safe to repeat after a kill at any instant."""
        if not self.finished():
            if missing := self.missing():
                raise RuntimeError(f"parts {missing[:5]} are not written yet")
            with writing(self.path):
                sweep(self.path)
            write_whole(self.path / MANIFEST, manifests.to_bytes(self._join()))
        shutil.rmtree(self.work / PARTS, ignore_errors=True)
        with suppress(OSError):
            (self.work / SETTINGS).unlink()
        return LabelStore(self.path)

    def _join(self) -> manifests.Manifest:
        tables, texts, flips = [np.zeros(0, IMAGE)], [np.zeros(0, "u1")], []
        crops, end = self.settings.crops.count, np.uint64(0)
        flips.append(np.zeros((0, -(-crops // 8)), "u1"))
        for number in range(self.parts):
            with self._read(number) as part:
                table, text, packed = table_of(part, crops)
            table["id_end"] += end
            end = table["id_end"][-1] if len(table) else end
            tables.append(table)
            texts.append(text)
            flips.append(packed)
        counts = [len(table) for table in tables[1:]]
        boxes = self._joined("boxes", "boxes", counts, np.dtype("<u2"), (crops, 4))
        signal = self._joined_signal(counts)
        whole: dict[str, list[NDArray[Any]]] = {"images": tables, "ids": texts, "flips": flips}
        tables_of = {}
        for name, arrays in whole.items():
            array = np.concatenate(arrays)
            with npy_file(self.path / f"{name}.npy", array.dtype, array.shape) as output:
                output.write(array.tobytes())
            tables_of[name] = described(self.path / f"{name}.npy", len(array))
        manifest = manifests.Manifest(
            geometry=manifests.Geometry(
                settings=self.settings.geometry,
                boxes=boxes,
                skipped=tuple(self.skipped()),
                **tables_of,
            ),
            signals={self.name: signal},
        )
        self._remove_old({file.name for file in manifest.files})
        return manifest

    def _joined_signal(self, counts: list[int]) -> manifests.Signal:
        """The signal's files out of all parts, of ``counts`` images each."""
        settings = self.settings.signal(self._class_names)
        width = settings.width(self.settings.crops.count)
        files = self._joined(self.name, "records", counts, settings.format.dtype, (width,))
        return manifests.Signal(settings=settings, files=files)

    def _joined(
        self,
        name: str,
        member: str,
        counts: list[int],
        dtype: np.dtype[Any],
        row: tuple[int, ...],
    ) -> tuple[manifests.File, ...]:
        """The files ``name``-00000.npy, … of one member of all parts: arrays [images, *row]."""
        files = []
        for number, parts in enumerate(grouped(counts, math.prod(row) * dtype.itemsize)):
            path, rows = self.path / f"{name}-{number:05d}.npy", sum(counts[p] for p in parts)
            with npy_file(path, dtype, (rows, *row)) as output:
                for part in parts:
                    with self._read(part) as read:
                        array = read[member]
                    if array.dtype != dtype or array.shape != (counts[part], *row):
                        raise InputError(
                            f"{self._part(part)} holds {member} {array.shape} {array.dtype}, not "
                            f"{(counts[part], *row)} {dtype}; delete it and continue with --resume"
                        )
                    output.write(np.ascontiguousarray(array).tobytes())
            files.append(described(path, rows))
        return tuple(files)

    def _part(self, number: int) -> Path:
        return self.work / PARTS / f"{number:06d}.npz"

    def _remove_old(self, current: set[str]) -> None:
        """Remove what a store that was overwritten has left, for it would not be replaced."""
        for file in self.path.glob("*.npy*"):
            if _OF_SIGNALS.fullmatch(file.name) and file.name not in current:
                with writing(file):
                    file.unlink()


def listing(ids: Sequence[str]) -> str:
    """SHA-256 over image ids, each followed by NUL: what `Images.listing` holds."""
    digest = hashlib.sha256()
    for image_id in ids:
        digest.update(image_id.encode() + b"\0")
    return digest.hexdigest()
