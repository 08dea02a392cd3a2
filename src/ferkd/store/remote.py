"""Reading a label store elsewhere: its files come through a local cache of bounded size.

A cached file is named by its SHA-256, so a store that was replaced, two stores with a file in
common and any number of processes all find the right bytes or none. See docs/remote.md.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ferkd.store import manifest as manifests
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import in_words
from ferkd.system.storage import as_local, cache_folder, get, join, masked, read, reason
from ferkd.system.text import size

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # there while a store is copied to this place
CACHE_BYTES = 20 << 30

logger = logging.getLogger("ferkd")


class Expected(NamedTuple):
    """A file as it must be."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, file: manifests.File) -> Expected:
        return cls(file.name, file.size, file.sha256)

    @classmethod
    def content(cls, name: str, data: bytes) -> Expected:
        return cls(name, len(data), hashlib.sha256(data).hexdigest())

    def damage(self, path: Path) -> str | None:
        """What is wrong with a local copy; None when it is whole."""
        if not path.is_file():
            return "it is not there"
        if (size := path.stat().st_size) != self.size:
            return f"it has {size} bytes, not {self.size}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return None if digest == self.sha256 else f"its SHA-256 is {digest}, not {self.sha256}"


@dataclass(frozen=True)
class Cache:
    """A folder of files named by their SHA-256, ``limit`` bytes of them at most.

    The least recently used go first. While several processes fetch at the same moment, the files
    on their way may exceed the limit; it holds again when they have arrived.
    """

    folder: Path
    limit: int

    @classmethod
    def default(cls) -> Cache:
        """FERKD_CACHE (else the user's cache folder), FERKD_CACHE_BYTES (else 20 GiB)."""
        given = os.environ.get("FERKD_CACHE_BYTES", str(CACHE_BYTES))
        if not re.fullmatch(r"[1-9]\d*", given):
            raise InputError(
                f"FERKD_CACHE_BYTES is {given!r}; it must be a whole number of bytes, at least 1"
            )
        return cls(cache_folder(), int(given))

    @contextmanager
    def hold(self, wanted: Expected, fetch: Callable[[Path], object]) -> Iterator[Path]:
        """The local copy of a file, made by ``fetch(path)`` where there is none.

        It cannot be evicted while the block runs; a map made in the block outlives it.
        """
        if wanted.size > self.limit:
            raise InputError(
                f"{wanted.name} has {wanted.size} bytes, but the cache {self.folder} may hold "
                f"{self.limit}; raise FERKD_CACHE_BYTES"
            )
        path, lock = self.path(wanted), self._lock(wanted.sha256)
        with self._written():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            with self._written():
                if not self.has(wanted):
                    self._make_room(wanted.size)
                    part = path.with_name(path.name + ".part")
                    try:
                        fetch(part)
                        os.replace(part, path)
                    finally:
                        part.unlink(missing_ok=True)
                    self._make_room(0)
                os.utime(path)
            yield path
        finally:
            lock.release()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Tell what the system says to writing the cache in words."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the cache {self.folder} cannot be written: {in_words(error)[0]}; mend that, or "
                "name another folder by FERKD_CACHE"
            ) from error

    def path(self, wanted: Expected) -> Path:
        return self.folder / wanted.sha256

    def has(self, wanted: Expected) -> bool:
        """Whether a file is in the cache, whole."""
        path = self.path(wanted)
        return path.is_file() and path.stat().st_size == wanted.size

    def touch(self, wanted: Expected) -> None:
        """Count a file as used now, where it is there."""
        with suppress(FileNotFoundError):
            os.utime(self.path(wanted))

    def _make_room(self, size: int) -> None:
        files = []
        for path in self.folder.iterdir():
            try:
                if path.is_file():
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:  # another process has just removed or renamed it
                continue
        excess = sum(bytes_ for _, bytes_, _ in files) + size - self.limit
        for _, bytes_, path in sorted(files):
            # The half-made file of a killed process goes whether there is room or not.
            if (excess > 0 or path.suffix == ".part") and self._evict(path):
                excess -= bytes_

    def _evict(self, path: Path) -> bool:
        try:
            with self._lock(path.stem).acquire(timeout=0):
                path.unlink(missing_ok=True)
        except (Timeout, PermissionError):  # in use; Windows also keeps a mapped file
            return False
        return True

    def _lock(self, sha256: str) -> FileLock:
        return FileLock(self.folder / "locks" / sha256)


@dataclass(frozen=True, repr=False)
class RemoteFolder:
    """The place of a store behind a URL: stands where a local store has its path.

    Its text is the URL without secrets. ``manifest`` pins the store: whoever gets this object,
    a worker process for instance, reads that very store or fails.
    """

    url: str
    cache: Cache
    manifest: Expected

    @classmethod
    def open(cls, url: str, cache: Cache | None = None) -> RemoteFolder:
        """Look a store up; reads its manifest. Raises InputError when there is none."""
        cache = cache or Cache.default()
        data = read_manifest(url)
        if data is None:
            half = read(join(url, UNFINISHED)) is not None
            raise InputError(
                f"{masked(url)} holds {'an unfinished upload of a' if half else 'no'} label store "
                f"(no {MANIFEST}); "
                + ("repeat the upload to finish it" if half else "check the URL")
            )
        folder = cls(url, cache, Expected.content(MANIFEST, data))
        with cache.hold(folder.manifest, lambda path: path.write_bytes(data)):
            return folder

    def __str__(self) -> str:
        return masked(self.url)

    __repr__ = __str__

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return str(self).partition("?")[0].rstrip("/").rpartition("/")[2]

    def read_manifest(self) -> bytes:
        """The bytes of the manifest."""
        with self._hold(self.manifest) as path:
            return path.read_bytes()

    @contextmanager
    def hold(self, file: manifests.File, *others: manifests.File) -> Iterator[Path]:
        """A verified local copy of a data file while the block runs.

        ``others`` count as used now: the tables that every read needs, which are mapped once and
        would otherwise look like the oldest.
        """
        for other in others:
            self.cache.touch(Expected.of(other))
        with self._hold(Expected.of(file)) as path:
            yield path

    def holds(self, file: manifests.File) -> bool:
        """Whether a data file is in the cache."""
        return self.cache.has(Expected.of(file))

    @contextmanager
    def _hold(self, wanted: Expected) -> Iterator[Path]:
        def fetch(path: Path) -> None:
            logger.info("fetching %s of %s (%s)", wanted.name, self, size(wanted.size))
            download(self.url, wanted, path)

        with self.cache.hold(wanted, fetch) as path:
            yield path


def location(path: str | Path | RemoteFolder) -> Path | RemoteFolder:
    """Where a store is: a local path, or the remote folder of a URL. Raises InputError."""
    if isinstance(path, RemoteFolder):
        return path
    local = as_local(path)
    return RemoteFolder.open(str(path)) if local is None else local


def read_manifest(url: str) -> bytes | None:
    """The bytes of the manifest at a URL; None where there is none. Raises InputError."""
    return read(join(url, MANIFEST))


def download(url: str, wanted: Expected, target: Path) -> None:
    """Fetch one file of the folder ``url`` and verify it; tried twice. Raises InputError."""
    where = join(url, wanted.name)
    problem: str | None = None
    for _ in range(2):
        try:
            target.unlink(missing_ok=True)  # a link planted there is not written through
            get(where, target, wanted.size)
            problem = wanted.damage(target)
        except (InputError, PermissionError, FileNotFoundError) as error:
            problem = reason(error, url)
            break
        except storage.TooLarge as error:
            problem = str(error)
        except Exception as error:  # of dozens of unrelated classes: a connection's end
            problem = reason(error, url)
        if problem is None:
            _to_disk(target)
            return
    target.unlink(missing_ok=True)
    raise InputError(
        f"{masked(where)} cannot be fetched: {problem}; try again, and if it stays so, upload the "
        "store again"
    )


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
