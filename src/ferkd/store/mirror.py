"""Parts of a store at a URL: sent as they are finished, so that another machine can go on.

The settings go first and name the job, then each part by a name of its own; the manifest is for
:func:`ferkd.store.publish.publish`, last of all. What lies there is no store until then.
"""

from __future__ import annotations

import logging
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferkd.store.unfinished import PARTS, SETTINGS
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, temporary, write_whole
from ferkd.system.storage import clear_errors, join, masked, open_url

_EVERY = 1.0  # seconds between two looks for parts that were finished
_PART = re.compile(r"\d{6}\.npz")
_LARGEST = 4 << 30  # bytes of a part that are taken from a server

logger = logging.getLogger("ferkd")


class PartsMirror:
    """The parts of the unfinished store in ``folder``, and their copies at ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self._sent: set[str] = set()
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
        return storage.info(join(self.url, SETTINGS)) is not None

    def fetch(self) -> None:
        """Bring the settings and the parts at the URL that the folder lacks. Raises InputError.

        A part that is not whole stays away, to be labelled again.
        """
        settings = storage.read(join(self.url, SETTINGS))
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
                storage.get(join(join(self.url, PARTS), name), arriving, _LARGEST)
            if _whole(arriving):
                arriving.replace(target)
                self._sent.add(name)
            else:
                arriving.unlink()
        if not mine.exists():
            write_whole(mine, settings)

    def send(self) -> None:
        """Upload the settings, and the parts that were not yet. What fails is tried again later."""
        settings = self.folder / SETTINGS
        try:
            if SETTINGS not in self._sent and settings.exists():
                storage.write(join(self.url, SETTINGS), settings.read_bytes())
                self._sent.add(SETTINGS)
            for part in sorted((self.folder / PARTS).glob("*.npz")):
                if part.name not in self._sent:
                    storage.write(join(join(self.url, PARTS), part.name), part.read_bytes())
                    self._sent.add(part.name)
        except FileNotFoundError:  # the parts were joined at this moment
            return
        except InputError as error:
            if not self._warned:
                logger.warning("%s; labelling goes on, and finished parts are sent later", error)
            self._warned = True

    def clear(self) -> None:
        """Remove the settings and the parts from the URL. Raises InputError."""
        for name in self.there():
            storage.remove(join(join(self.url, PARTS), name))
        storage.remove(join(self.url, SETTINGS))

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


def _whole(part: Path) -> bool:
    try:
        with zipfile.ZipFile(part) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
