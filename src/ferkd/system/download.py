"""Files from the web: patient with servers that are busy, once a machine; one file bounded and
verified."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, whole_file
from ferkd.system.storage import cache_folder, masked

_BUSY = (429, 503)
_TRIES = 6
_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_OTHERS = 3600.0  # seconds that another process may take to download

log = logging.getLogger("ferkd")
_T = TypeVar("_T")


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
    make_folder(path.parent)
    try:
        # Two processes may download the same file at once: each writes one of its own.
        with whole_file(path) as file:
            sent, digest = _fetch(url, file, size, progress)
            if sent != size or (sha256 is not None and digest != sha256):
                raise InputError(
                    f"{masked(url)} is another file than expected ({sent} bytes, sha256 {digest}); "
                    "get the right one and name it with --from"
                )
    except OSError as error:
        raise InputError(
            f"{masked(url)} cannot be downloaded to {path}: {error}; check the network and the "
            "disk, or get the file by other means and name it with --from"
        ) from None
    return path


def _fetch(
    url: str, file: BinaryIO, size: int, progress: Callable[[int, int], None] | None
) -> tuple[int, str]:
    """Write what ``url`` sends, ``size`` bytes and one more at most; its bytes and SHA-256."""
    digest, done = hashlib.sha256(), 0
    with _opened(url) as answer:
        while done <= size and (data := answer.read(min(_CHUNK, size + 1 - done))):
            file.write(data)
            digest.update(data)
            done += len(data)
            if progress:
                progress(done, size)
    return done, digest.hexdigest()


def _opened(url: str) -> Any:
    return patiently(lambda: urllib.request.urlopen(url, timeout=_TIMEOUT))


def patiently(fetch: Callable[[], _T]) -> _T:
    """What ``fetch`` gives; a server that is busy (429, 503) is asked again after growing waits, or
    after those that it asks for, up to a minute each. The last try raises what ``fetch`` does."""
    for tried in range(1, _TRIES + 1):
        try:
            return fetch()
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # its connection
            answer = _busy(error)
            if answer is None or tried == _TRIES:
                raise
        wait = str(answer.headers.get("Retry-After", ""))
        seconds = min(60, int(wait)) if wait.isdecimal() else 2.0**tried
        log.warning("the server is busy; it is asked again in %.0f s", seconds)
        time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _busy(error: BaseException | None) -> Any:
    """The answer of a busy server, with its headers, that an error tells of or came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        answer = error if isinstance(error, urllib.error.HTTPError) else vars(error).get("response")
        if getattr(answer, "status", getattr(answer, "status_code", None)) in _BUSY:
            return answer
        error = error.__cause__ or error.__context__
    return None


def once_a_machine(what: str, fetch: Callable[[], _T]) -> _T:
    """What ``fetch`` gives, which keeps what it downloads in a cache of its own.

    The first time that this machine wants ``what``, one process fetches and the others wait to find
    it in that cache.
    """
    caches = [os.environ.get(name, "") for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE")]
    name = hashlib.sha256("\0".join([what, *caches]).encode()).hexdigest()[:16]
    place = cache_folder() / "downloads" / name
    done = place.with_suffix(".done")
    if done.exists():
        return fetch()
    lock = FileLock(place.with_suffix(".lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_OTHERS)
    except (OSError, Timeout, NotImplementedError):  # no lock there, or another hangs: each alone
        return fetch()
    try:
        fetched = fetch()
        with suppress(OSError):
            done.touch()
        return fetched
    finally:
        lock.release()
