"""Checksums of a local store, checked beside the work that reads it."""

from __future__ import annotations

import logging
import threading

from ferkd.store.manifest import checksum
from ferkd.store.reader import LabelStore
from ferkd.store.remote import Expected, RemoteFolder
from ferkd.system.errors import InputError
from ferkd.system.text import size

logger = logging.getLogger("ferkd")

_whole: set[tuple[str, str]] = set()  # stores found whole by this process: path, manifest's SHA-256


class ChecksumCheck:
    """Reads every data file of a store once, in a thread of its own, against its SHA-256.

    Of a remote store nothing is read again: its files were checked as they were fetched. A store
    that this process has found whole is not checked a second time.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store, self._damage = store, ""
        self._known = (str(store.path), checksum(store.manifest))
        self._ended = threading.Event()
        if isinstance(store.path, RemoteFolder) or self._known in _whole:
            self._ended.set()
            return
        logger.info(
            "checking the checksums of %s beside the work (%s)",
            store.path,
            size(store.bytes_on_disk),
        )
        threading.Thread(target=self._run, daemon=True, name="checksums").start()

    def _run(self) -> None:
        try:
            for file in self._store.files:
                if damage := Expected.of(file).damage(self._store.folder / file.name):
                    self._damage = f"{file.name}: {damage}"
                    return
            _whole.add(self._known)
            logger.info("the checksums of %s are right", self._store.path)
        except OSError as error:
            self._damage = f"a file cannot be read ({error})"
        finally:
            self._ended.set()

    def require(self, *, ended: bool = False) -> None:
        """Raise InputError if damage was found so far; with ``ended`` the check is waited for."""
        if ended:
            self._ended.wait()
        if self._damage:
            raise InputError(
                f"the labels {self._store.path} are damaged ({self._damage}), and what was trained "
                "so far learnt from them; fetch or make the store again, then start anew with "
                "--overwrite"
            )
