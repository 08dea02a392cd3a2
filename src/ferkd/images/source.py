"""Where images come from: a folder of class folders, local or anywhere fsspec reaches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ferkd.system.errors import InputError
from ferkd.system.storage import clear_errors, is_url, masked, open_url

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_TIFF = (".tif", ".tiff")
_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = frozenset((*_JPEG, ".png", ".webp", ".gif", ".bmp", ".avif", *_TIFF, *_NETPBM))


class ImageSource(Protocol):
    """A fixed, ordered set of encoded images."""

    @property
    def name(self) -> str:
        """Where the images come from, for messages."""

    @property
    def ids(self) -> Sequence[str]:
        """One id an image, unique, sorted by code point, with '/' on every system."""

    @property
    def targets(self) -> np.ndarray:
        """The ground-truth class of each image, int32 [N]; -1 where there is none."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that targets index; () where there is no ground truth."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if it cannot be read."""


def fingerprint(data: bytes) -> int:
    """64-bit content fingerprint of encoded bytes: BLAKE2b-8 read as a little-endian integer."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def open_images(spec: str | Path | ImageSource, *, targets: bool = True) -> ImageSource:
    """Open an image source from what a user writes.

    spec: a folder, an fsspec URL of a folder (`s3://bucket/train`), or a source already open,
    which comes back as it is; targets: see FolderImages. Raises InputError.
    """
    if not isinstance(spec, str | Path):
        if not targets and (np.asarray(spec.targets) >= 0).any():
            raise InputError(
                f"{spec.name} is already open with its ground truth: open it with targets=False"
            )
        return spec
    kind, _, rest = str(spec).partition(":")
    if kind in ("wds", "hf") and not rest.startswith("//"):  # hf:// is an fsspec URL
        raise InputError(
            f"{spec}: '{kind}:' image sources are not supported in this version. "
            "Unpack the images to a folder of class folders and give its path"
        )
    return FolderImages(spec, targets=targets)


class FolderImages:
    """The images of a folder CLASS/.../NAME.EXT, local or on any fsspec file system.

    root: a path or a URL; targets: True takes the first folder level as the class; False takes
    any layout, every target is -1 and there are no class names.

    Ids are paths relative to the root. Hidden files and folders and files without an image
    extension (any case) are passed over. Links to files and folders are followed, under the name
    of the link. Cheap to pickle: each process opens a remote file system for itself.

    Raises InputError: a missing or empty folder, a file instead of one; with targets, a class
    folder without images or images outside class folders; a link that leads nowhere or back to a
    folder above; a name that is not valid Unicode.
    """

    def __init__(self, root: str | Path, *, targets: bool = True) -> None:
        self._url = str(root)
        self.name = masked(root) if is_url(root) else self._url
        if not self.name:
            raise InputError("the image folder is an empty text: give the path of a folder")
        self._opened: tuple[int, Any] | None = None
        self._remote = False
        self._root = os.path.abspath(os.path.expanduser(self._url))
        if is_url(root):
            file_system, self._root = self._file_system()
            self._remote = "file" not in file_system.protocol  # file:// is read as a local path
        files, folders = (
            _list_remote(file_system, self._root, self.name)
            if self._remote
            else _list_local(self._root, self.name)
        )
        self.ids: tuple[str, ...] = tuple(sorted(filter(_is_visible_image, files)))
        self._check_names()
        self.class_names: tuple[str, ...] = ()
        self.targets = np.full(len(self.ids), -1, np.int32)
        if targets:
            self._check_layout(folders)
            of_image = [id.partition("/")[0] for id in self.ids]
            self.class_names = tuple(sorted(set(of_image)))
            number = {name: index for index, name in enumerate(self.class_names)}
            self.targets[:] = [number[name] for name in of_image]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"FolderImages({self.name!r}: {len(self)} images, {len(self.class_names)} classes)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if they are out of reach."""
        id = self.ids[index]
        path = f"{self._root}/{id}"
        try:
            if self._remote:
                return self._read_remote(path, id)
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError(
                f"{id}: this image was listed in {self.name} but is no longer there. "
                "Put it back, or start again with the folder as it is now"
            ) from None
        except PermissionError:
            raise InputError(
                f"{id}: no permission to read this image of {self.name}. Change its permissions"
            ) from None

    def _read_remote(self, path: str, id: str) -> bytes:
        """The bytes of a remote file, tried twice: a connection may end in the middle."""
        remedy = "check the network, then continue"
        try:
            with clear_errors(f"{id} of {self.name} cannot be read"):
                return self._file_system()[0].cat_file(path)
        except InputError:
            with clear_errors(f"{id} of {self.name} cannot be read, tried twice", remedy):
                return self._file_system()[0].cat_file(path)

    def _file_system(self) -> tuple[Any, str]:
        """The fsspec file system and the root's path on it, opened once in each process.

        By process and not by object: a forked worker inherits the object, but remote file
        systems do not survive a fork.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            file_system, path = open_url(self._url)
            self._opened = (os.getpid(), (file_system, path.rstrip("/")))
        return self._opened[1]

    def _check_names(self) -> None:
        if not self.ids:
            raise InputError(
                f"{self.name}: no images in this folder. Files with these extensions count: "
                f"{' '.join(sorted(EXTENSIONS))}"
            )
        for id in self.ids:
            try:
                id.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"{self.name}: the file name {id!a} is not valid Unicode (UTF-8). Rename it"
                ) from None

    def _check_layout(self, folders: Iterable[str]) -> None:
        loose = [id for id in self.ids if "/" not in id]
        if loose:
            raise InputError(
                f"{self.name}: {_some(loose, 'image')} directly in this folder, outside of any "
                "class folder. Move every image into a folder named after its class "
                "(CLASS/NAME.jpg), or use --no-targets (targets=False) if there are no classes"
            )
        empty = sorted(set(folders) - {id.partition("/")[0] for id in self.ids})
        if empty:
            raise InputError(
                f"{self.name}: {_some(empty, 'class folder')} without images. Remove or fill "
                "them, or use --no-targets (targets=False) if the folders are not classes"
            )


def _some(names: Sequence[str], what: str) -> str:
    """'7 images (a, b, c, d, e, ...)'."""
    shown = ", ".join(ascii(n) if not n.isprintable() else n for n in names[:5])
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown}{', ...' * (len(names) > 5)})"


def _is_visible_image(id: str) -> bool:
    hidden = id.startswith(".") or "/." in id
    return not hidden and os.path.splitext(id)[1].lower() in EXTENSIONS


def _list_local(root: str, name: str) -> tuple[list[str], list[str]]:
    """(files by relative path, visible folders of the first level), in no particular order."""
    if not os.path.isdir(root):
        raise _not_a_folder(name, os.path.exists(root))
    files: list[str] = []
    folders: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [("", ())]  # (prefix, real paths above)
    while waiting:
        prefix, above = waiting.pop()
        path = f"{root}/{prefix}"
        real = os.path.realpath(path)
        if real in above:
            raise InputError(
                f"{name}: {prefix.rstrip('/')} is a link back to a folder that holds it. Remove it"
            )
        for entry in _scan(path, name):
            id = prefix + entry.name
            if entry.name.startswith("."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself, or into a folder that may not be entered
                is_folder = is_file = False
            if is_folder:
                waiting.append((f"{id}/", (*above, real)))
                if not prefix:
                    folders.append(id)
            elif is_file:
                files.append(id)
            elif entry.is_symlink() and _is_visible_image(id):
                raise InputError(f"{name}: {id} is a link that leads nowhere. Repair or remove it")
    return files, folders


def _scan(path: str, name: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except PermissionError:
        raise InputError(
            f"{name}: no permission to list {path}. Change its permissions or move it away"
        ) from None


def _list_remote(file_system: Any, root: str, name: str) -> tuple[list[str], list[str]]:
    """As _list_local, through fsspec."""
    remedy = "check the URL, the network and the credentials"
    try:
        with clear_errors(f"{name}: the folder cannot be listed", remedy):
            file_system.invalidate_cache()  # file systems are shared and may hold an old listing
            if not file_system.isdir(root):
                raise _not_a_folder(name, file_system.exists(root))
            found = file_system.find(root)
            top = file_system.ls(root, detail=True)
    except FileNotFoundError:
        raise _not_a_folder(name, False) from None
    start = len(root) + 1
    files = [path[start:] for path in found]
    folders = [e["name"].rstrip("/")[start:] for e in top if e["type"] == "directory"]
    return files, [folder for folder in folders if folder and not folder.startswith(".")]


def _not_a_folder(name: str, exists: bool) -> InputError:
    if exists:
        return InputError(f"{name} is a file: give the folder that holds the images")
    return InputError(f"{name}: there is no such folder. Check the path of the images")
