"""What is written never goes among the images: it would be listed as theirs the next time."""

from __future__ import annotations

from pathlib import Path

from ferkd.system.errors import InputError
from ferkd.system.storage import is_url, masked

from .sources import FolderImages, ImageSource, is_folder


def refuse_inside_images(out: str | Path, *images: str | Path | ImageSource | None) -> None:
    """Raise InputError when ``out`` lies in the folder of one of these sources, or is it."""
    for given in images:
        if isinstance(given, str | Path):
            root = str(given) if is_folder(given) else None
        else:
            root = given.root if isinstance(given, FolderImages) else None
        if root is not None and _inside(str(out), root):
            raise InputError(
                f"{masked(out)} lies inside the image folder {masked(root)}, which would hold "
                "other files than images in class folders from then on; give a folder beside it"
            )


def _inside(path: str, folder: str) -> bool:
    if is_url(path) != is_url(folder):
        return False
    if is_url(path):
        return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
    real = Path(folder).expanduser().resolve()
    return Path(path).expanduser().resolve().is_relative_to(real)
