"""Parts of a store at a URL: sent as they are finished, so that another machine can go on.

The settings go first and name the job, then each part by a name of its own; the manifest is for
:func:`ferkd.store.publish.publish`, last of all. What lies there is no store until then, but for an
older one that the job is to replace, which is readable until the new one comes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferkd.store.parts import is_whole
from ferkd.store.remote import MANIFEST
from ferkd.store.unfinished import PARTS, SETTINGS
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, temporary, write_whole
from ferkd.system.storage import clear_errors, join, masked, open_url

_EVERY = 1.0  # seconds between two looks for parts that were finished
_REPLACED = "replaced.json"  # which store at the URL the labels begun there are to replace
_PART = re.compile(r"\d{6}\.npz")
_LARGEST = 4 << 30  # bytes of a part that are taken from a server

logger = logging.getLogger("ferkd")


class PartsMirror:
    """The parts of the unfinished store in ``folder``, and their copies at ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self._sent: dict[str, tuple[int, ...]] = {}  # the state of each file that was sent
        self._warned = False

    def there(self) -> list[str]:
        """The names of the parts at the URL. Raises InputError."""
        file_system, path = open_url(join(self.url, PARTS))
        with clear_errors(f"{masked(self.url)} cannot be listed", "check the URL and the network"):
            try:
                file_system.invalidate_cache()
                listed = file_system.ls(path, detail=False)
            except FileNotFoundError:
                return []
        names = (str(name).rpartition("/")[2] for name in listed)
        return sorted(name for name in names if _PART.fullmatch(name))

    def begun(self) -> bool:
        """Whether labels were begun at the URL, by whatever machine."""
        return storage.info(self._place(SETTINGS)) is not None

    def replace(self, manifest: bytes) -> None:
        """Note at the URL that its store of this manifest is to go when the new labels come: who
        continues them need not be told again. Raises InputError."""
        storage.write(self._place(_REPLACED), _named(manifest))

    def replaces(self, manifest: bytes) -> bool:
        """Whether the store of this manifest is the one to be replaced. Raises InputError."""
        return storage.read(self._place(_REPLACED)) == _named(manifest)

    def fetch(self) -> None:
        """Bring the settings and the parts at the URL that the folder lacks. Raises InputError.

        A part that is not whole stays away, to be labelled again.
        """
        settings = storage.read(self._place(SETTINGS))
        if settings is None:
            return
        mine = self.folder / SETTINGS
        if mine.exists() and mine.read_bytes() != settings:
            raise InputError(
                f"{masked(self.url)} holds the begun labels of other settings or another machine's "
                f"software than {self.folder}; remove the latter, or start again with --overwrite"
            )
        make_folder(self.folder / PARTS)
        for name in self.there():
            target = self.folder / PARTS / name
            if target.exists():
                continue
            arriving = temporary(target)
            with clear_errors(f"{masked(self.url)}/{PARTS}/{name} cannot be fetched", "try again"):
                storage.get(self._place(name), arriving, _LARGEST)
            if is_whole(arriving):
                arriving.replace(target)
                self._sent[name] = _state(target)
            else:
                arriving.unlink()
        if not mine.exists():
            write_whole(mine, settings)

    def send(self) -> None:
        """Upload the settings, and the parts that were not yet. What fails is tried again later.

        A part that is gone or was labelled anew since it was sent goes from the URL first: nobody
        is to continue from it.
        """
        settings = self.folder / SETTINGS
        try:
            here = {SETTINGS: settings} if settings.exists() else {}
            here |= {part.name: part for part in sorted((self.folder / PARTS).glob("*.npz"))}
            states = {name: _state(path) for name, path in here.items()}
            stale = [n for n, sent in self._sent.items() if states.get(n) != sent and n != SETTINGS]
            if stale and (self.folder / MANIFEST).exists():  # the parts were joined
                return
            for name in stale:
                storage.remove(self._place(name))
                del self._sent[name]
            for name, path in here.items():
                if self._sent.get(name) != states[name]:
                    storage.write(self._place(name), path.read_bytes())
                    self._sent[name] = states[name]
        except FileNotFoundError:  # the parts were joined at this moment
            return
        except InputError as error:
            if not self._warned:
                logger.warning("%s; labelling goes on, and finished parts are sent later", error)
            self._warned = True

    def clear(self) -> None:
        """Remove all that a mirror writes from the URL. Raises InputError."""
        for name in [*self.there(), SETTINGS, _REPLACED]:
            storage.remove(self._place(name))

    def _place(self, name: str) -> str:
        """The URL of a part, or of another file."""
        return join(join(self.url, PARTS) if _PART.fullmatch(name) else self.url, name)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send parts while the block runs, and what is left when it ends, however it does."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_EVERY):
                self.send()

        thread = threading.Thread(target=run, daemon=True, name="parts")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.send()


def _named(manifest: bytes) -> bytes:
    return json.dumps({"manifest": hashlib.sha256(manifest).hexdigest()}).encode()


def _state(file: Path) -> tuple[int, ...]:
    """What tells a file from another one that has taken its name."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
