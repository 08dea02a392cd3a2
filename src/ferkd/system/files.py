"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


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
        with unfinished.open("wb") as file:
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
