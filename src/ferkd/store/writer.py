"""Writing a label store so that a kill at any instant loses at most one part.

While labelling, each part of ``part_images`` images is one file under ``parts/``, written whole
and renamed into place. When all are there they are joined into the store's files, the manifest
last: a folder with a manifest is a finished store.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from ferkd.store.reader import IMAGE, MANIFEST, Ids, LabelStore
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
FILE_BYTES = 1 << 30  # a records file is closed when the next part would take it past this


class StoreWriter:
    """Writes one store, part by part. Use as a context manager: it holds the store's lock.

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
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        local = as_local(path)
        if local is None:
            raise InputError(
                f"{masked(path)} is a URL; write the labels to a folder, then publish it"
            )
        self.path = local
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
                refuse_shared(self.path)
            self._prepare()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._unlock()

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
            sweep(self.path / _PARTS)
        begun = (self.path / MANIFEST).exists() or (self.path / _SETTINGS).exists()
        if begun and self._overwrite:
            # In this order a kill leaves the old store, or its folder with the new settings and
            # no part: never old labels under new settings, never a folder that is not known again.
            if (self.path / _PARTS).exists():
                shutil.rmtree(self.path / _PARTS)
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
            make_folder(self.path / _PARTS)

    def _write_settings(self) -> None:
        text = json.dumps(self.settings.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_whole(self.path / _SETTINGS, text.encode())

    def _written_settings(self) -> manifests.Settings:
        return begun_settings(self.path)

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
        records: NDArray[Any],
        skipped: list[manifests.Skipped],
    ) -> None:
        """Write one part: n ids, image rows [n] (less ``id_end``) and records [n, crops]."""
        encoded = [i.encode() for i in ids]
        images = images.copy()
        images["id_end"] = np.cumsum([len(i) for i in encoded], dtype=np.uint64)
        reasons = json.dumps([s.model_dump() for s in skipped], ensure_ascii=False).encode()
        with whole_file(self._part(part)) as file:
            np.savez(
                file,
                ids=np.frombuffer(b"".join(encoded), "u1"),
                images=images,
                records=records,
                skipped=np.frombuffer(reasons, "u1"),
            )
        self.begun(part).unlink(missing_ok=True)

    def begun(self, part: int) -> Path:
        """Where the writer's user may keep a part that is not whole yet."""
        return self.path / _PARTS / f"{part:06d}.begun.npz"

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
            self.begun(number).unlink(missing_ok=True)
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
        shutil.rmtree(self.path / _PARTS, ignore_errors=True)
        (self.path / _SETTINGS).unlink(missing_ok=True)
        return LabelStore(self.path)

    def _join(self) -> manifests.Manifest:
        tables, texts, counts = [], [], []
        end = np.uint64(0)
        for number in range(self.parts):
            with self._read(number) as part:
                table, text = part["images"], part["ids"]
            table["id_end"] += end
            end = table["id_end"][-1] if len(table) else end
            tables.append(table)
            texts.append(text)
            counts.append(len(table))
        dtype, crops = self.settings.record.format.dtype, self.settings.crops.count
        files = []
        for number, members in enumerate(_grouped(counts, crops * dtype.itemsize)):
            rows = sum(counts[m] for m in members)
            with _npy(self.path / f"records-{number:05d}.npy", dtype, (rows, crops)) as output:
                for member in members:
                    with self._read(member) as part:
                        output.write(np.ascontiguousarray(part["records"]).tobytes())
            files.append(_described(self.path / f"records-{number:05d}.npy", rows))
        table = np.concatenate(tables) if tables else np.zeros(0, IMAGE)
        text = np.concatenate(texts) if texts else np.zeros(0, "u1")
        for name, array in (("images.npy", table), ("ids.npy", text)):
            with _npy(self.path / name, array.dtype, array.shape) as output:
                output.write(array.tobytes())
        self._remove_old({file.name for file in files})
        return manifests.Manifest(
            settings=self.settings,
            images=_described(self.path / "images.npy", len(table)),
            ids=_described(self.path / "ids.npy", len(text)),
            records=tuple(files),
            skipped=tuple(self.skipped()),
        )

    def _part(self, number: int) -> Path:
        return self.path / _PARTS / f"{number:06d}.npz"

    def _remove_old(self, records: set[str]) -> None:
        """Remove what a store that was overwritten has left, for it would not be replaced."""
        for file in self.path.glob("records-*.npy*"):
            if file.name not in records:
                file.unlink()


def has_labels(path: str | Path) -> bool:
    """Whether a store is finished here, or a part of one written."""
    local = as_local(path)
    if local is None:
        return False
    return (local / MANIFEST).exists() or any((local / _PARTS).glob("*.npz"))


def begun_settings(store: str | Path) -> manifests.Settings:
    """The settings of a finished or unfinished store. Raises InputError."""
    folder = Path(store)
    if (folder / MANIFEST).exists():
        return LabelStore(folder).settings
    if not (folder / _SETTINGS).exists():
        raise InputError(f"{folder} holds no labels; check the path")
    try:
        data = read_plain(folder / _SETTINGS, SMALL_FILE)
        return manifests.Settings.model_validate_json(data)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{folder / _SETTINGS} is damaged ({error}); start again with --overwrite"
        ) from None


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
