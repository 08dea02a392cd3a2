"""One process at a time in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, writing

LOCK = ".lock"

log = logging.getLogger("ferkd")


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold ``folder``, made if need be, for this process alone.

    Raises InputError(``busy``) while another holds it, Unwritable where it cannot be made. The
    lock dies with its process, so a kill leaves none; nothing remains of it, nor of a folder that
    was made for it and stayed empty.
    """
    made = not folder.exists()
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    with writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(busy) from None
        except NotImplementedError:  # some network file systems
            log.warning("%s is on a file system without locks: use it from one process", folder)
    try:
        yield
    finally:
        if os.name == "posix":  # while it is held: a later holder has a file of its own
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if os.name != "posix":  # where an open file cannot be removed
            with suppress(OSError):
                (folder / LOCK).unlink()
        if made:
            with suppress(OSError):
                folder.rmdir()
