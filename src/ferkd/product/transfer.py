"""Stores, runs and exports to other places and back: whole, or not at all.

A place is a local folder, a folder behind any fsspec URL, or a repository of the Hugging Face Hub
(``hf://OWNER/NAME``, ``hf://datasets/OWNER/NAME``). Label stores go by ``ferkd.store.publish``. Of
runs and exports the data files go first and their listing last; on the Hub all is one commit. What
is fetched is verified by size and SHA-256 beside its destination, and then renamed into place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ferkd.models.student import finished_run
from ferkd.product import bundle, hub
from ferkd.product.parcel import FILES, LISTING, MOST_LISTING, Parcel, pack, unpack
from ferkd.store.publish import fetch, publish, upload
from ferkd.store.remote import MANIFEST, UNFINISHED, download, read_manifest
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary, make_folder, require_room, temporary, write_whole
from ferkd.system.locks import LOCK, held
from ferkd.system.results import Result
from ferkd.system.storage import as_local, join, local_path, masked

Report = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, eq=False)
class Transferred(Result):
    """What is at ``place`` now: a store, a run or an export, of so many files and bytes."""

    kind: str
    place: str
    files: int
    bytes: int


def push(
    what: str | Path,
    to: str | Path,
    *,
    overwrite: bool = False,
    public: bool = False,
    progress: Report | None = None,
) -> Transferred:
    """Copy a finished local store, run or export to ``to``; returns what is there.

    Pushing the same again sends nothing, and goes on where an interrupted push stopped. A
    repository of the Hub that is not there is made, private unless ``public``. Raises InputError
    for what is not finished, and for a place that holds anything else, without ``overwrite``.
    """
    folder = local_path(what, "store, run or export")
    parcel = pack(folder)
    if (local := as_local(to)) is not None:
        if local == folder:
            raise InputError(f"{to} is where it already is; give another place")
        if parcel.kind == "store":
            fetch(str(folder), local, overwrite=overwrite, progress=progress)
        else:
            _place(parcel, str(folder), local, overwrite, progress, listed=True)
    elif hub.is_hub(str(to)):
        hub.commit(parcel, folder, str(to), overwrite=overwrite, public=public)
    elif parcel.kind == "store":
        publish(folder, str(to), overwrite=overwrite, progress=progress)
    else:
        _send(parcel, folder, str(to), overwrite, progress)
    return _told(parcel, masked(to))


def pull(
    source: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Transferred:
    """Copy what :func:`push` left at ``source`` to the local folder ``out``; returns as it does.

    The folder appears when all files are there and verified. An interrupted pull goes on when it
    is repeated. Raises InputError for a place without a listing, files that are not as listed, and
    a folder that holds anything else; an older copy is replaced with ``overwrite``.
    """
    folder, local = local_path(out), as_local(source)
    place = str(source) if local is None else str(local)
    data = storage.read(join(place, LISTING), MOST_LISTING)
    if data is not None:
        parcel = unpack(data, masked(place))
    elif read_manifest(place) is not None:
        store = fetch(place, folder, overwrite=overwrite, progress=progress)
        return _told(pack(Path(str(store.path))), str(folder))
    elif local is not None:
        parcel = pack(local)  # a run or an export that nobody pushed
    else:
        half = storage.read(join(place, UNFINISHED)) is not None
        raise InputError(
            f"{masked(place)} holds "
            + ("an unfinished push; repeat it" if half else "nothing that ferkd push left ")
            + ("" if half else f"(neither {LISTING} nor {MANIFEST}); check the URL")
        )
    _place(parcel, place, folder, overwrite, progress, listed=False)
    return _told(parcel, str(folder))


def _told(parcel: Parcel, place: str) -> Transferred:
    return Transferred(parcel.kind, place, len(parcel.files), parcel.size)


def _send(parcel: Parcel, folder: Path, url: str, overwrite: bool, progress: Report | None) -> None:
    """The files of a run or an export to a URL, the listing last."""
    old = storage.read(join(url, LISTING), MOST_LISTING)
    begun = storage.read(join(url, UNFINISHED))
    marker = f'{{"listing": "{parcel.digest}"}}\n'.encode()
    if old != parcel.data:
        if not overwrite:
            _refuse(url, parcel, old, begun, marker)
        storage.write(join(url, UNFINISHED), marker)
        if old is not None:
            storage.remove(join(url, LISTING))  # first: what is left is nothing
            for name in _names(old) - {file.name for file in parcel.files}:
                storage.remove(join(url, name))
    done = 0
    for file in parcel.files:
        upload(folder, url, file)
        done += file.size
        if progress:
            progress(done, parcel.size)
    if old != parcel.data:
        storage.write(join(url, LISTING), parcel.data)
    if old != parcel.data or begun is not None:
        storage.remove(join(url, UNFINISHED))


def _refuse(
    url: str, parcel: Parcel, old: bytes | None, begun: bytes | None, marker: bytes
) -> None:
    where = masked(url)
    if old is not None:
        raise InputError(f"{where} holds another run or export; replace it with --overwrite")
    if begun not in (None, marker):
        raise InputError(
            f"{where} holds an unfinished push of something else; finish that one, or replace it "
            "with --overwrite"
        )
    if begun is None:
        for name in (MANIFEST, *(file.name for file in parcel.files)):
            if storage.info(join(url, name)) is not None:
                raise InputError(
                    f"{where} holds a file {name} that no such push left; give a URL without "
                    "other files, or --overwrite"
                )


def _names(listing: bytes) -> set[str]:
    """The files of an older listing; none of one that cannot be read, whose files stay."""
    try:
        return {file.name for file in unpack(listing, "the older push").files}
    except InputError:
        return set()


def _place(
    parcel: Parcel,
    source: str,
    out: Path,
    overwrite: bool,
    progress: Report | None,
    *,
    listed: bool,
) -> None:
    """Fetch the files beside ``out``, verify them, and rename their folder into place."""
    if _is_there(parcel, out):
        return
    _check_target(out, overwrite)
    staging = out.parent / f".{out.name}.{parcel.digest[:16]}.partial"
    make_folder(out.parent)
    busy = f"{out} is being written by another process; wait for it or stop it, then repeat"
    with held(staging, busy):
        files = staging / "files"
        make_folder(files)
        missing = [file for file in parcel.files if file.damage(files / file.name)]
        require_room(files, *(file.size for file in missing), what=f"the {parcel.kind}")
        done = parcel.size - sum(file.size for file in missing)
        for file in missing:
            part = temporary(files / file.name)
            download(source, file, part)
            part.replace(files / file.name)
            done += file.size
            if progress:
                progress(done, parcel.size)
        _sound(parcel, files)
        for left in files.iterdir():  # by a pull that was killed
            if left.name not in {file.name for file in parcel.files}:
                left.unlink()
        if listed:
            write_whole(files / LISTING, parcel.data)
        if out.exists():
            shutil.rmtree(staging / "old", ignore_errors=True)  # by a pull that was killed
            os.rename(out, staging / "old")
        os.rename(files, out)
    shutil.rmtree(staging, ignore_errors=True)  # gone where nothing was left in it


def _sound(parcel: Parcel, folder: Path) -> None:
    """Refuse what would not open where it is going."""
    if parcel.kind == "export":
        bundle.read_record(folder)
    else:
        finished_run(folder)


def _is_there(parcel: Parcel, out: Path) -> bool:
    """Whether ``out`` is this very run or export already, with nothing beside it."""
    if not out.is_dir():
        return False
    found = {path.name for path in out.iterdir()} - {LISTING, LOCK}
    wanted = {file.name for file in parcel.files}
    return found == wanted and not any(file.damage(out / file.name) for file in parcel.files)


def _check_target(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a new or empty folder")
    held_ = {path.name for path in out.iterdir()} if out.exists() else set()
    found = {name for name in held_ if name != LOCK and not is_temporary(name)}
    if not found:
        return
    ours = any(found <= {*names, LISTING} and names[0] in found for names in FILES.values())
    if not ours:
        raise InputError(f"{out} holds other files; give a new or empty folder")
    if not overwrite:
        raise InputError(
            f"{out} holds another run or export; replace it with --overwrite, or give another "
            "folder"
        )
