"""Files that are either whole or absent, whatever happens while they are written, and plain files
of bounded size where others may have put links, devices or pipes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from ferkd.system.errors import InputError
from ferkd.system.results import as_object

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")

# What the system's number says, and what helps; the default is its own words.
_CAUSES = {
    errno.ENOSPC: ("the disk is full: no space is left", "make room there, or write to another"),
    errno.EDQUOT: ("your share of this disk is used up", "make room there, or write to another"),
    errno.EFBIG: (
        "the file is too large for this process or this disk",
        "raise the limit (ulimit -f), or write to another disk",
    ),
    errno.EROFS: ("the file system is read-only", "write to another folder"),
    errno.EACCES: ("permission denied", "give yourself the permission, or write elsewhere"),
    errno.EPERM: ("it is not permitted", "give yourself the permission, or write elsewhere"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this system", "try again later"),
    errno.ENOTDIR: ("a folder of its path is a file", "write to another folder"),
    errno.ENOENT: ("a folder of its path is gone", "make it again, or write elsewhere"),
}


class Unwritable(InputError):
    """A file cannot be written; the message says why and what helps."""


def unwritable(path: object, error: OSError) -> Unwritable:
    """The error of writing ``path`` in words."""
    cause, remedy = in_words(error)
    return Unwritable(f"{path} cannot be written: {cause}; {remedy}")


def in_words(error: OSError) -> tuple[str, str]:
    """What an error of the system means, and what helps."""
    words = error.strerror or str(error) or type(error).__name__
    return _CAUSES.get(error.errno or 0, (words, "mend that, or write to another folder"))


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn what the system says to writing ``path`` within the block into :class:`Unwritable`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises Unwritable."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path, *sizes: int, what: str) -> None:
    """Raise Unwritable unless files of these ``sizes`` (bytes) fit in ``folder`` together now.

    The space is really asked for where the system can (Linux), so limits, quotas and permissions
    speak up too, and given back at once; elsewhere the free space is looked up.
    """
    trials = [temporary(folder / "room") for _ in sizes]
    try:
        for trial, size in zip(trials, sizes, strict=True):
            with trial.open("xb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                elif shutil.disk_usage(folder).free < sum(sizes):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot promise
            return
        cause, remedy = in_words(error)
        raise Unwritable(
            f"{folder} cannot take the {sum(sizes):,} bytes of {what}: {cause}; {remedy}"
        ) from error
    finally:
        for trial in trials:
            trial.unlink(missing_ok=True)


def read_plain(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, ``limit`` at most; a link to one is followed.

    Neither a pipe nor a device is waited for or read: what a file is, is asked of the open file.
    Raises OSError where it is none, is larger or cannot be read.
    """
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file, but a device, a pipe or a folder")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB")
    return data


def temporary(path: Path) -> Path:
    """A name, another at each call, under which a file is written before it takes its own."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of :func:`temporary`; a kill may leave such files."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what kills have left in a folder; only for who holds it alone."""
    for file in list(folder.iterdir()) if folder.is_dir() else ():
        if is_temporary(file.name):
            file.unlink(missing_ok=True)


class _Noting(io.FileIO):
    """A file that remembers why a write failed: libraries put words of their own in its place."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name, or replaces an older one, only when it is complete.

    Its bytes and its name are on the disk when the block ends; a block that fails leaves nothing.
    Raises Unwritable for a full disk, a missing permission and their like.
    """
    unfinished = temporary(path)
    with writing(path):
        raw = _Noting(unfinished, "xb")
    try:
        file = io.BufferedWriter(raw)
        yield cast(BinaryIO, file)
        with writing(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            raw.close()
        with suppress(OSError):  # in a folder that became unwritable: the next sweep takes it
            unfinished.unlink()
        if raw.failure is not None and isinstance(error, Exception):
            raise unwritable(path, raw.failure) from error
        raise
    finally:
        with suppress(OSError, ValueError):
            file.close()
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a power cut too
        finally:
            os.close(folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader or a crash sees the old or the new file."""
    with whole_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, results as objects, as :func:`write_whole` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=as_object)
    write_whole(path, f"{text}\n".encode())
