"""One file from the web: bounded, verified, and patient with servers that are busy."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ferkd.system.errors import InputError
from ferkd.system.storage import masked

_BUSY = (429, 503)
_TRIES = 6
_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte


def download(
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The file at ``url`` in ``path``, unless it is there already; returns the path.

    The file must have ``size`` bytes and, where it is given, the digest ``sha256``. A server that
    is busy (429, 503) is asked again after growing waits. Raises InputError.
    """
    if path.is_file() and path.stat().st_size == size:
        return path
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _fetch(url, unfinished, size, progress)
        if unfinished.stat().st_size != size or (sha256 is not None and digest != sha256):
            raise InputError(
                f"{masked(url)} is another file than expected ({unfinished.stat().st_size} bytes, "
                f"sha256 {digest}); get the right one and name it with --from"
            )
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"{masked(url)} cannot be downloaded to {path}: {error}; check the network and the "
            "disk, or get the file by other means and name it with --from"
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _fetch(url: str, path: Path, size: int, progress: Callable[[int, int], None] | None) -> str:
    """Write what ``url`` sends, ``size`` bytes and one more at most; its SHA-256."""
    digest, done = hashlib.sha256(), 0
    with _opened(url) as answer, path.open("wb") as file:
        while done <= size and (data := answer.read(min(_CHUNK, size + 1 - done))):
            file.write(data)
            digest.update(data)
            done += len(data)
            if progress:
                progress(done, size)
    return digest.hexdigest()


def _opened(url: str) -> Any:
    for tried in range(1, _TRIES + 1):
        try:
            return urllib.request.urlopen(url, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code not in _BUSY or tried == _TRIES:
                raise
            wait = error.headers.get("Retry-After", "")
            time.sleep(min(60, int(wait)) if wait.isdecimal() else 2.0**tried)
    raise AssertionError("the last try returns or raises")
