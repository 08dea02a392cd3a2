"""The locks by which processes share the parts of a store, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ferkd.system.errors import InputError
from ferkd.system.files import unwritable

CLAIMS = "parts"  # the folder of the parts holds their claims too
LOCK = "lock"  # of a store: whoever holds it may replace the manifest


def names_of_shards(store: Path) -> list[str]:
    """The locks of the shards that have been begun and not ended: "shard-1-of-4"."""
    return sorted(path.stem for path in (store / CLAIMS).glob("shard-*-of-*.lock"))


def held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    probe.release()
    return False


def refuse_shared(*folders: Path) -> None:
    """Raise InputError where shards of a store, or of a signal of one, are being written."""
    for folder in folders:
        for name in names_of_shards(folder):
            if held(folder / CLAIMS / f"{name}.lock"):
                raise InputError(
                    f"{folder} is being written by another process ({name}); wait for it or stop "
                    "it, then continue with --resume"
                )


def take(lock: FileLock, folder: Path, then: str = "", patience: float = 0.0) -> None:
    """Take the lock of a store's folder, which is made if need be, within ``patience`` seconds.

    Raises InputError while another process holds it, ``then`` being what to do afterwards, and
    Unwritable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise InputError(
            f"{folder} is being written by another process; wait for it or stop it{then}"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def locked(folder: Path, then: str = "") -> Iterator[None]:
    """Hold a store's lock, as its writers do; no trace of it remains. Raises as :func:`take`."""
    lock = FileLock(folder / LOCK)
    take(lock, folder, then)
    try:
        yield
    finally:
        release(lock, remove=True)


def release(lock: FileLock, *, remove: bool) -> None:
    """Let go of a lock; with ``remove`` its file goes too, where the folder lets it.

    What kept the folder from being written is for who wrote there to say, not for its lock.
    """
    file = Path(lock.lock_file)
    with suppress(OSError):
        if remove and os.name == "posix":  # while it is held: a later writer has its own file
            file.unlink()
    lock.release()
    with suppress(OSError):
        if remove and os.name != "posix":  # where an open file cannot be removed
            file.unlink()
