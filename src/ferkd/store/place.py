"""Where outputs may not go: a label store's folder belongs to its own files."""

from __future__ import annotations

from pathlib import Path

from ferkd.store.manifest import FORMAT
from ferkd.system.errors import InputError
from ferkd.system.storage import is_url

_BEGINNING = 4096  # bytes in which a manifest tells its format: its keys are sorted


def refuse_inside_store(out: str | Path) -> None:
    """Raise InputError when the local path ``out`` lies inside a label store."""
    if is_url(out):
        return
    for folder in Path(out).expanduser().resolve().parents:
        if _is_store(folder):
            raise InputError(
                f"{out} lies inside the label store {folder}, which other files would damage; "
                "give a folder beside it"
            )


def _is_store(folder: Path) -> bool:
    if (folder / "settings.json").is_file() and (folder / "parts").is_dir():  # not finished
        return True
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(_BEGINNING)
