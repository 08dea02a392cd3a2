"""What laying out any data set needs: files out of an archive or a folder, into a new folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ferkd.system.errors import InputError

FILE_BYTES = 64 << 20  # more than any file of these sets


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears as ``out`` when it is complete. Raises InputError."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists; give a new folder, or replace it with --overwrite")
    unfinished = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}); make room or give another folder"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def files_of(
    place: Path, wanted: Callable[[tuple[str, ...]], bool]
) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """The files of an archive (tar, zip) or folder that are ``wanted`` by the parts of their path.

    Nothing is unpacked: contents come one at a time. Links are passed over. Raises InputError.
    """
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            parts = path.relative_to(place).parts
            if wanted(parts) and path.is_file():
                yield parts, _bounded(path.name, path.stat().st_size, path.read_bytes)
        return
    if not place.is_file():
        raise InputError(f"{place}: there is no such archive or folder; check --from")
    try:
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                for info in archive.infolist():
                    if wanted(parts := tuple(info.filename.split("/"))) and not info.is_dir():
                        read = lambda info=info: archive.read(info)  # noqa: E731
                        yield parts, _bounded(info.filename, info.file_size, read)
            return
        with tarfile.open(place, "r|*") as stream:
            for member in stream:
                if not member.isreg() or not wanted(parts := tuple(member.name.split("/"))):
                    continue
                file = stream.extractfile(member)
                assert file is not None  # it is a regular file
                yield parts, _bounded(member.name, member.size, file.read)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{place} is damaged or no archive ({error}); fetch it again") from None


def _bounded(name: str, size: int, read: Callable[[], bytes]) -> bytes:
    if size > FILE_BYTES:
        raise InputError(f"{name} has {size} bytes, more than any file of this set")
    return read()
