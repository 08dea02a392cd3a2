"""The locks by which processes share the parts of a store, seen from outside."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ferkd.system.errors import InputError

CLAIMS = "parts"  # the folder of the parts holds their claims too


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
