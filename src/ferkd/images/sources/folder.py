"""A folder of class folders, local or anywhere fsspec reaches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.images.kinds import EXTENSIONS, PLUGGED, describe_unread, extension, extensions, unread
from ferkd.images.sources.files import Files
from ferkd.images.sources.source import check_ids, check_look_alike, some
from ferkd.system.errors import InputError
from ferkd.system.storage import clear_errors

logger = logging.getLogger("ferkd")

UNLABELLED = "_unlabelled"  # the folder of images without a class, beside class folders
# The names of a data set's parts, which are no classes.
_TRAIN = frozenset(("train", "training"))
_HELD_OUT = frozenset(("val", "valid", "validation", "test", "testing", "dev", "eval"))


class FolderImages:
    """The images of a folder CLASS/.../NAME.EXT, local or on any fsspec file system.

    root: a path or a URL; targets: True takes the first folder level as the class, but for a folder
    named "_unlabelled", whose images have no class (their target is -1); False takes any layout,
    every target is -1 and there are no class names.

    Ids are paths relative to the root. Hidden files and folders and files without an image
    extension (any case) are passed over. Links to files and folders are followed, under the name
    of the link. Cheap to pickle: each process opens a remote file system for itself.

    Raises InputError: a missing or empty folder, a file instead of one; with targets, a class
    folder without images or images outside class folders; a link that leads nowhere or back to a
    folder above; a name that is not valid Unicode; with targets, classes that look the same, and
    the parts of a data set (train, val) in place of classes.

    ``unread`` counts the images of kinds that no plug-in reads here, by extension.
    """

    def __init__(self, root: str | Path, *, targets: bool = True) -> None:
        self._files = Files(root)
        self.name = self._files.name
        if not self.name:
            raise InputError("the image folder is an empty text: give the path of a folder")
        files, folders = (
            _list_remote(self._files.file_system()[0], self._files.root, self.name)
            if self._files.remote
            else _list_local(self._files.root, self.name)
        )
        visible = [file for file in files if _is_visible(file)]
        kinds = extensions()
        self.ids: tuple[str, ...] = tuple(sorted(f for f in visible if extension(f) in kinds))
        self.unread = unread(visible)
        self._check_names()
        if self.unread:
            logger.warning("%s: %s", self.name, describe_unread(self.unread))
        self.class_names: tuple[str, ...] = ()
        self.targets = np.full(len(self.ids), -1, np.int32)
        if targets:
            self._check_layout(folders)
            of_image = [id.partition("/")[0] for id in self.ids]
            self.class_names = tuple(sorted(set(of_image) - {UNLABELLED}))
            self._check_class_names()
            number = {name: index for index, name in enumerate(self.class_names)}
            number[UNLABELLED] = -1
            self.targets[:] = [number[name] for name in of_image]

    @property
    def root(self) -> str:
        """The folder: an absolute path, or the URL as it was given."""
        return self._files.url if self._files.remote else self._files.root

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"FolderImages({self.name!r}: {len(self)} images, {len(self.class_names)} classes)"

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if they are out of reach."""
        return self._files.read(self.ids[index])

    def _check_names(self) -> None:
        if not self.ids:
            missed = f". {describe_unread(self.unread)}" if self.unread else ""
            raise InputError(
                f"{self.name}: no images in this folder. Files with these extensions count: "
                f"{' '.join(sorted(EXTENSIONS))}{missed}"
            )
        check_ids(self.ids, self.name)

    def _check_layout(self, folders: Iterable[str]) -> None:
        loose = [id for id in self.ids if "/" not in id]
        if loose:
            raise InputError(
                f"{self.name}: {some(loose, 'image')} directly in this folder, outside of any "
                "class folder. Move every image into a folder named after its class "
                "(CLASS/NAME.jpg), or use --no-targets (targets=False) if there are no classes"
            )
        empty = sorted(set(folders) - {id.partition("/")[0] for id in self.ids})
        if empty:
            raise InputError(
                f"{self.name}: {some(empty, 'class folder')} without images. Remove or fill "
                "them, or use --no-targets (targets=False) if the folders are not classes"
            )

    def _check_class_names(self) -> None:
        """Refuse the parts of a data set, given together, for the classes that they are not."""
        nested = {id.partition("/")[0] for id in self.ids if id.count("/") > 1}
        names = {name: name.lower() for name in self.class_names}
        train = [name for name, low in names.items() if low in _TRAIN]
        held_out = [name for name, low in names.items() if low in _HELD_OUT]
        splits = [*train, *held_out]
        alone = len(splits) == len(names) and (len(splits) > 1 or nested == set(splits))
        if alone or (train and held_out and nested >= set(splits)):
            others = f", and {self.name}/{held_out[0]} for validation" if train and held_out else ""
            raise InputError(
                f"{self.name}: the folders {', '.join(splits)} are named as the parts of a data "
                f"set, not as classes. Give {self.name}/{splits[0]} for the images{others}; rename "
                "the folders if they are classes"
            )
        check_look_alike(self.class_names, self.name)


def _below(path: str, root: str) -> str:
    """A path relative to the root that it lies below; the root of an archive is empty."""
    return path.strip("/").removeprefix(root.strip("/")).lstrip("/")


def _is_visible(id: str) -> bool:
    return not (id.startswith(".") or "/." in id)


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
            elif entry.is_symlink() and extension(id) in EXTENSIONS | PLUGGED.keys():
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
    files = [_below(path, root) for path in found]
    folders = [_below(e["name"], root) for e in top if e["type"] == "directory"]
    return files, [folder for folder in folders if folder and not folder.startswith(".")]


def _not_a_folder(name: str, exists: bool) -> InputError:
    if exists:
        return InputError(f"{name} is a file: give the folder that holds the images")
    return InputError(f"{name}: there is no such folder. Check the path of the images")
