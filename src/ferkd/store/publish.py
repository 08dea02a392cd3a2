"""Label stores to and from other places, the manifest last: whoever looks sees all or nothing."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferkd.store import manifest as manifests
from ferkd.store.claims import LOCK, locked, refuse_shared
from ferkd.store.mirror import PartsMirror
from ferkd.store.place import refuse_inside_store
from ferkd.store.reader import LabelStore, split_signals
from ferkd.store.remote import MANIFEST, UNFINISHED, Cache, Expected, download, read_manifest
from ferkd.store.unfinished import PARTS, SETTINGS, settings_in
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary, sweep, temporary, write_whole
from ferkd.system.storage import as_local, join, local_path, masked, open_url, reason

PUT_PART = 50 << 20  # the bytes of a part when s3fs uploads a large file in parts

_OF_SIGNALS = re.compile(rf"{manifests.NAME}(-\d{{5}}|\.{manifests.NAME})\.npy")
Report = Callable[[int, int], None]  # bytes done, bytes in all


def publish(
    store: str | Path | LabelStore,
    url: str,
    *,
    signals: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> str:
    """Copy a finished local store to a URL; returns the URL without secrets.

    ``signals`` names those to copy, None all; ``store#NAME`` does the same. A store of the same
    images and crops at the URL gets the signals that it does not have, and can be read all the
    while.

    The data files go first, each verified after its upload, the manifest last. Files that an
    interrupted upload of the same store left whole are not sent again. Another store at the URL
    is refused without ``overwrite``, and files that no upload of a store left are never replaced.
    Raises InputError.
    """
    opened = LabelStore.open(store)
    where, folder = masked(url), opened.folder
    if as_local(url) is not None:
        raise InputError(f"{where} is a local folder; publish to a URL like s3://bucket/labels")
    if signals is None and opened is not store and opened.chosen:
        signals = opened.chosen.split(",")
    wanted = opened.manifest if signals is None else opened.manifest.only(signals)
    files, old = wanted.files, read_manifest(url)
    begun = storage.read(join(url, UNFINISHED))
    extended = None if overwrite else _extended(old, wanted, where)
    data = manifests.to_bytes(extended or wanted)
    marker = _marker(data)
    if old != data and extended is None:
        _check_free(where, old, begun, marker, overwrite)
        if old is None and begun is None and (stranger := _stranger(url, files)):
            if read_manifest(url) is None and storage.read(join(url, UNFINISHED)) is None:
                raise InputError(
                    f"{where} holds a file {stranger}, but no label store; give a URL without "
                    "other files"
                )
            # Another upload, of the same store perhaps, has begun since this one looked.
            return publish(store, url, signals=signals, overwrite=overwrite, progress=progress)
        storage.write(join(url, UNFINISHED), marker)
        if old is not None:
            storage.remove(join(url, MANIFEST))  # first: what is left is no store
            _remove_stale(url, old, files)
    done = 0
    for file in files:
        upload(folder, url, Expected.of(file))
        done += file.size
        if progress:
            progress(done, sum(f.size for f in files))
    if old != data:
        left = old if extended else None  # what this copy knows to be there
        storage.write(join(url, MANIFEST), _with_newer(url, left, wanted, data))
    if old != data or begun is not None:
        storage.remove(join(url, UNFINISHED))
    return where


def fetch(
    url: str,
    out: str | Path,
    *,
    signals: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> LabelStore:
    """Copy the store at a URL into the local folder ``out``, verified; returns it opened.

    ``signals`` names those to copy, None all; ``url#NAME`` does the same. A store of the same
    images and crops in ``out`` gets the signals that it does not have, and can be read meanwhile.

    An interrupted copy is continued: files that are there and whole are not fetched again.
    Another store in ``out`` is refused without ``overwrite``, a folder of other files always.
    Raises InputError.
    """
    folder, (place, named) = local_path(out), split_signals(url)
    url = str(place)
    if named and signals is None:
        signals = named.split(",")
    refuse_inside_store(folder)
    data = read_manifest(url)
    if data is None:
        raise InputError(f"{masked(url)} holds no label store (no {MANIFEST}); check the URL")
    manifest = manifests.from_bytes(data, masked(join(url, MANIFEST)))
    if signals is not None:
        manifest = manifest.only(signals)
    files = [Expected.of(f) for f in manifest.files]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a new or empty folder")
    contents = {p.name for p in folder.iterdir()} if folder.exists() else set()
    others = {name for name in contents if name != LOCK and not is_temporary(name)}
    if others and not contents & {MANIFEST, UNFINISHED}:
        raise InputError(f"{folder} holds other files; give a new or empty folder")
    with locked(folder, ", then repeat"):
        old, begun = _local(folder / MANIFEST), _local(folder / UNFINISHED)
        extended = None if overwrite else _extended(old, manifest, str(folder))
        data = manifests.to_bytes(extended or manifest)
        if old != data and extended is None:
            _check_free(str(folder), old, begun, _marker(data), overwrite)
            write_whole(folder / UNFINISHED, _marker(data))
            (folder / MANIFEST).unlink(missing_ok=True)
            for path in folder.glob("*.npy"):
                if _OF_SIGNALS.fullmatch(path.name) and path.name not in {f.name for f in files}:
                    path.unlink()
        done = 0
        for file in files:
            if file.damage(folder / file.name):
                part = temporary(folder / file.name)
                download(url, file, part)
                part.replace(folder / file.name)
            done += file.size
            if progress:
                progress(done, sum(f.size for f in files))
        if old != data:
            write_whole(folder / MANIFEST, data)
        sweep(folder)  # what a copy that was killed has left
        (folder / UNFINISHED).unlink(missing_ok=True)
    return LabelStore(folder)


@contextmanager
def label_out(
    out: str | Path,
    *,
    work: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Iterator[Path]:
    """The local folder to label into, where ``out`` may be a URL: published when the block ends.

    A local ``out`` is that folder itself. For a URL it is ``work``, which stays, or a folder in
    the cache, the same one each time so that ``resume`` finds it, which goes when its labels are
    published. Finished parts are sent to the URL meanwhile: with ``resume`` another machine goes on
    from these, or from the store at the URL. A store that ``overwrite`` was to replace stays until
    the new one is there, and is replaced by whoever continues that job.
    Raises InputError before any label is made when a store is in the way.
    """
    if (local := as_local(out)) is not None:
        yield local
        return
    url = str(out)
    folder = Path(work) if work is not None else _work_folder(url)
    there, mirror = read_manifest(url), PartsMirror(folder, url)
    if there is not None and not (resume or overwrite):
        raise InputError(
            f"{masked(url)} holds a label store already; continue it with --resume, or replace it "
            "with --overwrite"
        )
    if overwrite:
        mirror.clear()
        if there is not None:
            mirror.replace(there)
    elif there is not None and not mirror.replaces(there):
        if not (folder.is_dir() and any(folder.iterdir())):
            fetch(url, folder)
    elif mirror.begun():
        if resume:
            mirror.fetch()
        elif not folder.exists():
            raise InputError(
                f"{masked(url)} holds labels that were begun; continue them with --resume, or "
                "replace them with --overwrite"
            )
    with mirror.sending():
        yield folder
    there = read_manifest(url)
    agreed = overwrite or (there is not None and mirror.replaces(there))
    publish(folder, url, overwrite=agreed, progress=progress)
    mirror.clear()
    if work is None:
        shutil.rmtree(folder)


@contextmanager
def shard_out(url: str, name: str, *, work: str | Path | None = None) -> Iterator[Path]:
    """The local folder in which one of several processes, called ``name``, labels to a URL.

    Parts that others have sent are fetched first, and its own sent as they are finished. Where the
    folder holds the whole store when the block ends, that is published and the parts are removed.
    Several may publish at once: they have the same bytes. Raises InputError.
    """
    folder = Path(work) if work is not None else _work_folder(url, name)
    mirror = PartsMirror(folder, url)
    if (there := read_manifest(url)) is None:
        mirror.fetch()
    elif not (folder / MANIFEST).exists():
        _remove_parts(folder, manifests.from_bytes(there, masked(url)), url)
        fetch(url, folder)
    with mirror.sending():
        yield folder
    if (folder / MANIFEST).exists():
        publish(folder, url)
        mirror.clear()
        if work is None:
            shutil.rmtree(folder)


def _remove_parts(folder: Path, store: manifests.Manifest, url: str) -> None:
    """Remove the parts in ``folder`` of the job that has become the ``store`` at the URL.

    Raises InputError for those of another one, and while another process writes them.
    """
    if not (folder / SETTINGS).exists():
        return
    begun, geometry = settings_in(folder), store.geometry.settings
    if all(manifests.Settings.of(geometry, s.settings) != begun for s in store.signals.values()):
        raise InputError(
            f"{folder} holds the begun labels of other settings than the store at {masked(url)}; "
            "remove them, or label to another URL"
        )
    refuse_shared(folder)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    (folder / SETTINGS).unlink()


def _work_folder(url: str, *names: str) -> Path:
    name = hashlib.sha256(masked(url).encode()).hexdigest()[:16]
    return Cache.default().folder / "work" / "-".join([name, *names])


def _extended(
    old: bytes | None, wanted: manifests.Manifest, where: str
) -> manifests.Manifest | None:
    """The store at a place with the signals of ``wanted`` more; None where it is another's."""
    if old is None:
        return None
    try:
        there = manifests.from_bytes(old, where)
    except InputError:  # of another version, or damaged
        return None
    common = there.signals.keys() & wanted.signals.keys()
    if there.geometry != wanted.geometry or any(
        _others(there.signals[name], wanted.signals[name]) for name in common
    ):
        return None
    signals = dict(sorted({**there.signals, **wanted.signals}.items()))
    for name in common:
        tables = {**there.signals[name].tables, **wanted.signals[name].tables}
        update = {"tables": dict(sorted(tables.items()))}
        signals[name] = wanted.signals[name].model_copy(update=update)
    return manifests.Manifest(geometry=there.geometry, signals=signals)


def _with_newer(url: str, left: bytes | None, wanted: manifests.Manifest, data: bytes) -> bytes:
    """The manifest to write, ``data`` unless another copy has written one since ``left``, whose
    signals stay. Raises InputError where that is of another store."""
    now = read_manifest(url)
    if now in (left, data):
        return data
    extended = _extended(now, wanted, masked(url))
    if extended is None:
        raise InputError(
            f"{masked(url)} was changed by another upload meanwhile, of another store or by "
            "--overwrite; publish the one that is to stay again with --overwrite"
        )
    return manifests.to_bytes(extended)


def _others(one: manifests.Signal, other: manifests.Signal) -> bool:
    """Whether two signals differ: in more than tables that one of them lacks."""
    common = one.tables.keys() & other.tables.keys()
    return one.records != other.records or any(one.tables[t] != other.tables[t] for t in common)


def _marker(data: bytes) -> bytes:
    """What marks a place as being copied to: which store is on its way."""
    return f'{{"manifest": "{hashlib.sha256(data).hexdigest()}"}}\n'.encode()


def _check_free(
    where: str, old: bytes | None, begun: bytes | None, marker: bytes, overwrite: bool
) -> None:
    if overwrite:
        return
    if old is not None:
        raise InputError(f"{where} holds another label store; replace it with --overwrite")
    if begun not in (None, marker):
        raise InputError(
            f"{where} holds an unfinished copy of another label store; finish that one, or replace "
            "it with --overwrite"
        )


def _stranger(url: str, files: Sequence[manifests.File]) -> str:
    """The first of the names of ``files`` that a file at the URL has; "" without any."""
    names = (file.name for file in files)
    return next((name for name in names if storage.info(join(url, name)) is not None), "")


def _remove_stale(url: str, old: bytes, files: Sequence[manifests.File]) -> None:
    try:
        former = manifests.from_bytes(old, masked(url))
    except InputError:  # of another version, or damaged: its files stay
        return
    current = {file.name for file in files}
    for file in former.files:
        if file.name not in current:
            storage.remove(join(url, file.name))


def upload(folder: Path, url: str, file: Expected) -> None:
    """Send one file unless it is there already, and verify what has arrived; tried twice."""
    where = join(url, file.name)
    if damage := file.damage(folder / file.name):
        raise InputError(f"{folder / file.name} is damaged: {damage}; label or fetch it again")
    problem: str | None = _difference(folder, url, file)
    for _ in range(2):
        if problem is None:
            return
        try:
            file_system, path = open_url(where)
            storage.make_parent(file_system, path)
            file_system.put_file(str(folder / file.name), path)
            problem = _difference(folder, url, file)
        except (InputError, PermissionError) as error:
            problem = reason(error, url)
            break
        except Exception as error:  # of dozens of unrelated classes: a connection's end
            problem = reason(error, url)
    if problem is not None:
        raise InputError(
            f"{masked(where)} cannot be written: {problem}; repeat the upload, it goes on from here"
        )


def _difference(folder: Path, url: str, file: Expected) -> str | None:
    """How the file at the URL differs from the local one; None when it is the same."""
    info = storage.info(join(url, file.name))
    if info is None:
        return "it has not arrived"
    if info.get("size") != file.size:
        return f"{info.get('size')} of {file.size} bytes have arrived"
    if info.get("ETag", "").strip('"') in etags(folder / file.name):
        return None
    with storage.clear_errors(f"{join(url, file.name)} cannot be read back"):
        file_system, path = open_url(join(url, file.name))
        digest = hashlib.sha256()
        for start in range(0, file.size, PUT_PART):
            digest.update(file_system.cat_file(path, start, min(start + PUT_PART, file.size)))
    return None if digest.hexdigest() == file.sha256 else "other bytes have arrived"


def etags(path: Path) -> set[str]:
    """The ETags by which S3 confirms a file's content: sent whole, or in parts by s3fs.

    A server that encrypts or counts in another way gives another tag; its content is read back.
    """
    whole, parts, count = _md5(), _md5(), 0
    with path.open("rb") as file:
        while data := file.read(PUT_PART):
            whole.update(data)
            parts.update(hashlib.md5(data, usedforsecurity=False).digest())
            count += 1
    return {whole.hexdigest(), f"{parts.hexdigest()}-{count}"}


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _local(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
