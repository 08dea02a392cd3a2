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
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ferkd.images import ImageSource, fingerprint
from ferkd.store import manifest as manifests
from ferkd.store.claims import refuse_shared
from ferkd.store.place import refuse_inside_store
from ferkd.store.reader import IMAGE, MANIFEST, Ids, LabelStore, StoredSignal
from ferkd.system.errors import InputError
from ferkd.system.files import (
    is_temporary,
    make_folder,
    read_plain,
    sweep,
    unwritable,
    whole_file,
    write_whole,
)
from ferkd.system.storage import SMALL_FILE, as_local, masked

_SETTINGS = "settings.json"
_PARTS = "parts"
_LOCK = "lock"
_ADDING = "adding-"
_NUMBERED = re.compile(rf"{manifests.NAME}-\d{{5}}\.npy(\.tmp)?")
FILE_BYTES = 1 << 30  # a records file is closed when the next part would take it past this


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
        self.work = self.path  # where the settings and the parts are until all is finished
        self.settings = settings
        self.total = total
        self._resume, self._overwrite = resume, overwrite
        self._lock = FileLock(self.path / _LOCK)
        self._patience = 0.0  # seconds to wait for another process's lock

    @property
    def parts(self) -> int:
        """The number of parts of the whole store."""
        return -(-self.total // self.settings.part_images)

    def __enter__(self) -> Self:
        refuse_inside_store(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; the label store needs a folder of its own")
        contents = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        others = {name for name in contents if name != _LOCK and not is_temporary(name)}
        if others and not contents & {MANIFEST, _SETTINGS}:
            raise InputError(
                f"{self.path} holds other files; give --out a new or empty folder for the labels"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=self._patience)
        except Timeout:
            raise InputError(
                f"{self.path} is being written by another process; wait for it or stop it, then "
                "continue with --resume"
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            if not self._shared:
                refuse_shared(*self._shared_places())
            self._prepare()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._unlock()

    def _shared_places(self) -> list[Path]:
        """The folders that other processes may be writing parts to, which this one would break."""
        return [self.path, *self.path.glob(f"{_ADDING}*")]

    def _unlock(self) -> None:
        """Release the lock; a finished store keeps no trace of it."""
        finished = (self.path / MANIFEST).exists()
        if finished and os.name == "posix":  # while it is held: a later writer has its own file
            (self.path / _LOCK).unlink(missing_ok=True)
        self._lock.release()
        if finished and os.name != "posix":  # where an open file cannot be removed
            with suppress(OSError):
                (self.path / _LOCK).unlink()

    def _prepare(self) -> None:
        if not self._shared:  # else others may be writing
            sweep(self.path)
            sweep(self.work)
            sweep(self.work / _PARTS)
        begun = (self.path / MANIFEST).exists() or (self.work / _SETTINGS).exists()
        if begun and self._overwrite:
            # In this order a kill leaves the old store, or its folder with the new settings and
            # no part: never old labels under new settings, never a folder that is not known again.
            if (self.work / _PARTS).exists():
                shutil.rmtree(self.work / _PARTS)
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
            make_folder(self.work / _PARTS)

    def _write_settings(self) -> None:
        text = json.dumps(self.settings.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_whole(self.work / _SETTINGS, text.encode())

    def _written_settings(self) -> manifests.Settings:
        if (self.path / MANIFEST).exists():
            return LabelStore(self.path, self.name).settings_of(self.name)
        return _settings_in(self.work)

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
        return (
            [] if self.finished() else [p for p in range(self.parts) if not self._part(p).exists()]
        )

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
        encoded = [i.encode() for i in ids]
        images = images.copy()
        images["id_end"] = np.cumsum([len(i) for i in encoded], dtype=np.uint64)
        reasons = json.dumps([s.model_dump() for s in skipped], ensure_ascii=False).encode()
        with whole_file(self._part(part)) as file:
            np.savez(
                file,
                ids=np.frombuffer(b"".join(encoded), "u1"),
                images=images,
                boxes=np.asarray(boxes, "<u2"),
                flips=np.packbits(flips, axis=1, bitorder="little"),
                records=records,
                skipped=np.frombuffer(reasons, "u1"),
            )

    def skipped(self) -> list[manifests.Skipped]:
        """The images left out so far, of all parts written."""
        listed = []
        for number in range(self.parts):
            if self._part(number).exists():
                listed += self._skipped_of(number)
        return [manifests.Skipped(**s) for s in listed]

    def _skipped_of(self, number: int) -> list[dict[str, str]]:
        with self._read(number) as part:
            listed: list[dict[str, str]] = json.loads(part["skipped"].tobytes())
        return listed

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
                table, text = part["images"], part["ids"]
            ids = Ids(table["id_end"], text)
            labelled = {ids[row]: int(table["fingerprint"][row]) for row in range(len(ids))}
            differing = [
                source.ids[place]
                for place in self.part_range(number)
                if source.ids[place] in labelled
                and labelled[source.ids[place]] != fingerprint(source.read(place))
            ]
            if differing or self._skipped_of(number):
                self._part(number).unlink()
            changed += differing
        return changed

    @contextmanager
    def _read(self, number: int) -> Iterator[Any]:
        """An open part; its members are checked against their CRC-32 as they are read."""
        try:
            with np.load(self._part(number), allow_pickle=False) as part:
                yield part
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(
                f"{self._part(number)} is damaged ({error}); delete it and continue with --resume"
            ) from None

    def finish(self) -> LabelStore:
        """Join the parts into the finished store. Safe to repeat after a kill at any instant."""
        if not self.finished():
            if missing := self.missing():
                raise RuntimeError(f"parts {missing[:5]} are not written yet")
            sweep(self.path)
            write_whole(self.path / MANIFEST, manifests.to_bytes(self._join()))
        shutil.rmtree(self.work / _PARTS, ignore_errors=True)
        (self.work / _SETTINGS).unlink(missing_ok=True)
        return LabelStore(self.path)

    def _join(self) -> manifests.Manifest:
        tables, texts, flips = [np.zeros(0, IMAGE)], [np.zeros(0, "u1")], []
        crops, end = self.settings.crops.count, np.uint64(0)
        flips.append(np.zeros((0, -(-crops // 8)), "u1"))
        for number in range(self.parts):
            with self._read(number) as part:
                table, text = part["images"], part["ids"]
                flips.append(part["flips"])
            table["id_end"] += end
            end = table["id_end"][-1] if len(table) else end
            tables.append(table)
            texts.append(text)
        counts = [len(table) for table in tables[1:]]
        boxes = self._joined("boxes", "boxes", counts, np.dtype("<u2"), (crops, 4))
        signal = self._joined_signal(counts)
        whole: dict[str, list[NDArray[Any]]] = {"images": tables, "ids": texts, "flips": flips}
        described = {}
        for name, arrays in whole.items():
            array = np.concatenate(arrays)
            with _npy(self.path / f"{name}.npy", array.dtype, array.shape) as output:
                output.write(array.tobytes())
            described[name] = _described(self.path / f"{name}.npy", len(array))
        manifest = manifests.Manifest(
            geometry=manifests.Geometry(
                settings=self.settings.geometry,
                boxes=boxes,
                skipped=tuple(self.skipped()),
                **described,
            ),
            signals={self.name: signal},
        )
        self._remove_old({file.name for file in manifest.files})
        return manifest

    def _joined_signal(self, counts: list[int]) -> manifests.Signal:
        """The signal's files out of all parts, of ``counts`` images each."""
        named = self.settings.class_names if self.settings.targets else ()
        settings = self.settings.signal(self._class_names or named)
        width = settings.width(self.settings.crops.count)
        files = self._joined(self.name, "records", counts, settings.format.dtype, (width,))
        return manifests.Signal(settings=settings, files=files)

    _class_names: tuple[str, ...] | None = None  # of the geometry that a signal is added to

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
        for number, parts in enumerate(_grouped(counts, math.prod(row) * dtype.itemsize)):
            path, rows = self.path / f"{name}-{number:05d}.npy", sum(counts[p] for p in parts)
            with _npy(path, dtype, (rows, *row)) as output:
                for part in parts:
                    with self._read(part) as read:
                        array = read[member]
                    if array.dtype != dtype or array.shape != (counts[part], *row):
                        raise InputError(
                            f"{self._part(part)} holds {member} {array.shape} {array.dtype}, not "
                            f"{(counts[part], *row)} {dtype}; delete it and continue with --resume"
                        )
                    output.write(np.ascontiguousarray(array).tobytes())
            files.append(_described(path, rows))
        return tuple(files)

    def _part(self, number: int) -> Path:
        return self.work / _PARTS / f"{number:06d}.npz"

    def _remove_old(self, current: set[str]) -> None:
        """Remove what a store that was overwritten has left, for it would not be replaced."""
        for file in self.path.glob("*-*.npy*"):
            if _NUMBERED.fullmatch(file.name) and file.name not in current:
                file.unlink()


class SignalWriter(StoreWriter):
    """Adds a signal to the finished store at ``path``, part by part, as a store is written.

    ``settings`` are those of the store with the new signal's own. The store stays as it is and
    readable until the last moment, when its manifest is replaced; what is there of another signal
    is not touched. A signal of that name is continued with ``resume``; with ``overwrite`` the old
    one is dropped first.
    """

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
        super().__init__(path, settings, total, signal=signal, resume=resume, overwrite=overwrite)
        self.work = self.path / f"{_ADDING}{self.name}"
        self._geometry = LabelStore(self.path).manifest.geometry  # InputError where none is
        self._class_names = self._geometry.settings.class_names

    def _prepare(self) -> None:
        if self._overwrite:
            if self.work.exists():
                shutil.rmtree(self.work)
            if self.finished():
                _drop(LabelStore(self.path), self.name)
        begun = self.finished() or (self.work / _SETTINGS).exists()
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
        (self.work / _PARTS).mkdir(exist_ok=True)

    def _shared_places(self) -> list[Path]:
        return [self.work]

    def _written_settings(self) -> manifests.Settings:
        return _settings_in(self.work)

    def finished(self) -> bool:
        return self.name in LabelStore(self.path).manifest.signals

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
                table, text = part["images"], part["ids"]
                boxes, flips = part["boxes"], part["flips"]
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
            del text
        if at != len(store):
            raise InputError(f"{at} images for the {len(store)} of {self.path}; use the same")
        return counts


def drop(path: str | Path, name: str) -> None:
    """Take a signal out of a local store; its files go after the manifest that named them."""
    store = LabelStore(path)
    with _locked(store.folder):
        _drop(store.signal(name).store, name)


def _drop(store: LabelStore, name: str) -> None:
    left = [other for other in store.manifest.signals if other != name]
    gone = store.manifest.signals[name].files
    write_whole(store.folder / MANIFEST, manifests.to_bytes(store.manifest.only(left)))
    for file in gone:
        (store.folder / file.name).unlink(missing_ok=True)


def copy_signal(source: LabelStore, name: str, into: str | Path, new_name: str = "") -> LabelStore:
    """Add a signal of another store with the very same images and crops, byte by byte."""
    target, new_name = LabelStore(into), manifests.check_name(new_name or name)
    signal = source.signal(name)
    if new_name in target.manifest.signals:
        raise InputError(f"{into} holds a signal {new_name} already; give another name")
    with _locked(target.folder):
        return _copied(source, signal, target, new_name)


def _copied(source: LabelStore, signal: StoredSignal, target: LabelStore, name: str) -> LabelStore:
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
    files = []
    for number, file in enumerate(signal.files):
        path = target.folder / f"{name}-{number:05d}.npy"
        with source.local(file) as here, whole_file(path) as output, here.open("rb") as opened:
            shutil.copyfileobj(opened, output, 1 << 20)
        described = _described(path, file.rows)
        if described.sha256 != file.sha256:
            raise InputError(f"{source.path}/{file.name} is damaged; fetch the store again")
        files.append(described)
    added = manifests.Signal(settings=settings, files=tuple(files))
    manifest = LabelStore(target.path).manifest.with_signal(name, added)
    write_whole(target.folder / MANIFEST, manifests.to_bytes(manifest))
    return LabelStore(target.path, name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The store's lock, as writers hold it."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder} is being written by another process; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def _settings_in(folder: Path) -> manifests.Settings:
    try:
        data = read_plain(folder / _SETTINGS, SMALL_FILE)
        return manifests.Settings.model_validate_json(data)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{folder / _SETTINGS} is damaged ({error}); start again with --overwrite"
        ) from None


def has_labels(path: str | Path, adding: str | None = None) -> bool:
    """Whether a store is finished here, or a part of one written; ``adding``: of that signal."""
    local = as_local(path)
    if local is None:
        return False
    if adding is not None:
        return any((local / f"{_ADDING}{adding}" / _PARTS).glob("*.npz"))
    return (local / MANIFEST).exists() or any((local / _PARTS).glob("*.npz"))


def begun_settings(store: str | Path, adding: str | None = None) -> manifests.Settings:
    """The settings of a finished or unfinished store, or of a signal that is being added to one.

    Raises InputError.
    """
    folder = Path(store)
    if (folder / MANIFEST).exists() and adding is None:
        return LabelStore(folder).settings
    if adding is not None:
        if adding in (opened := LabelStore(folder)).manifest.signals:
            return opened.settings_of(adding)
        folder /= f"{_ADDING}{manifests.check_name(adding)}"
    if not (folder / _SETTINGS).exists():
        raise InputError(f"{folder} holds no labels; check the path")
    return _settings_in(folder)


def listing(ids: Sequence[str]) -> str:
    """SHA-256 over image ids, each followed by NUL: what `Images.listing` holds."""
    digest = hashlib.sha256()
    for image_id in ids:
        digest.update(image_id.encode() + b"\0")
    return digest.hexdigest()


def _grouped(counts: list[int], row_bytes: int) -> Iterator[list[int]]:
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


def _described(path: Path, rows: int) -> manifests.File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return manifests.File(name=path.name, rows=rows, size=path.stat().st_size, sha256=digest)


@contextmanager
def _npy(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A .npy file whose header is written and whose body the caller streams."""
    with whole_file(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        yield file
