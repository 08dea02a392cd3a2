"""Reading the files of one root, local or on any fsspec file system, by relative path."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from ferkd.system.errors import InputError
from ferkd.system.storage import clear_errors, is_url, masked, open_url

# File systems whose files are read through one handle, which threads must not share.
_ARCHIVES = frozenset(("tar", "zip", "libarchive"))


class Files:
    """The files below ``root``, a path or a URL. Cheap to pickle; safe in threads and forks.

    ``remote`` is False for a local folder, also where it was given as a ``file://`` URL.
    """

    def __init__(self, root: str | Path) -> None:
        self.url = str(root)
        self.name = masked(root) if is_url(root) else self.url
        self._opened: dict[tuple[int, int], tuple[Any, str]] = {}
        self._archive = self.url.split("://", 1)[0] in _ARCHIVES
        self.remote = False
        self.root = os.path.abspath(os.path.expanduser(self.url))
        if is_url(root):
            file_system, self.root = self.file_system()
            self.remote = "file" not in file_system.protocol  # file:// is read as a local path
            if self._archive:
                self.root = _in_archive(file_system, self.root)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from ``start`` to ``end``; InputError naming it."""
        full = f"{self.root}/{path}" if self.root else path
        try:
            if self.remote:
                return self._read_remote(full, path, start, end)
            with open(full, "rb") as file:
                file.seek(start or 0)
                return file.read() if end is None else file.read(end - (start or 0))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError(
                f"{path}: this image was listed in {self.name} but is no longer there. "
                "Put it back, or start again with the folder as it is now"
            ) from None
        except PermissionError:
            raise InputError(
                f"{path}: no permission to read this image of {self.name}. Change its permissions"
            ) from None

    def _read_remote(self, full: str, path: str, start: int | None, end: int | None) -> bytes:
        """The bytes of a remote file, tried twice: a connection may end in the middle."""
        remedy = "check the network, then continue"
        try:
            with clear_errors(f"{path} of {self.name} cannot be read"):
                return self.file_system()[0].cat_file(full, start=start, end=end)
        except InputError:
            with clear_errors(f"{path} of {self.name} cannot be read, tried twice", remedy):
                return self.file_system()[0].cat_file(full, start=start, end=end)

    def file_system(self) -> tuple[Any, str]:
        """The fsspec file system and the root's path on it, opened once in each process.

        By process and not by object: a forked worker inherits the object, but remote file
        systems do not survive a fork. An archive is opened once in each thread, as its files are
        read through one handle.
        """
        key = os.getpid(), threading.get_ident() if self._archive else 0
        if key not in self._opened:
            file_system, path = open_url(self.url)
            self._opened[key] = file_system, path.rstrip("/")
        return self._opened[key]


def _in_archive(file_system: Any, root: str) -> str:
    """The name of a folder in an archive, whose names begin with "./" where `tar .` made it."""
    dotted = f"./{root}".rstrip("/")
    if (root and file_system.isdir(root)) or not file_system.isdir(dotted):
        return root
    return dotted
