"""Files that are either whole or absent, whatever happens while they are written, and plain files
of bounded size where others may have put links, devices or pipes."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


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


def new_file(path: Path) -> BinaryIO:
    """A file of that name opened for writing, made anew: what stood there is removed, and no link
    planted there is followed."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")


def temporary(path: Path) -> Path:
    """The name under which a file is written before it takes its own; a kill may leave it."""
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name, or replaces an older one, only when it is complete.

    Its bytes and its name are on the disk when the block ends; a block that fails leaves nothing.
    """
    unfinished = temporary(path)
    try:
        with new_file(unfinished) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
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
    """Write ``value`` as indented JSON, as :func:`write_whole` does."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
