"""A store that is still being written, seen from outside."""

from __future__ import annotations

from pathlib import Path

from ferkd.store import manifest as manifests
from ferkd.store.reader import MANIFEST, LabelStore
from ferkd.system.errors import InputError
from ferkd.system.files import read_plain
from ferkd.system.storage import SMALL_FILE, as_local

SETTINGS = "settings.json"
PARTS = "parts"
ADDING = "adding-"  # begins the folder in which a signal of that name is added


def settings_in(folder: Path) -> manifests.Settings:
    try:
        data = read_plain(folder / SETTINGS, SMALL_FILE)
        return manifests.Settings.model_validate_json(data)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{folder / SETTINGS} is damaged ({error}); start again with --overwrite"
        ) from None


def has_labels(path: str | Path, adding: str | None = None) -> bool:
    """Whether a store is finished here, or a part of one written; ``adding``: of that signal."""
    local = as_local(path)
    if local is None:
        return False
    if adding is not None:
        return any((local / f"{ADDING}{adding}" / PARTS).glob("*.npz"))
    return (local / MANIFEST).exists() or any((local / PARTS).glob("*.npz"))


def begun_settings(store: str | Path, adding: str | None = None) -> manifests.Settings:
    """The settings of a finished or unfinished store, or of a signal that is being added to one.

    Raises InputError.
    """
    folder = Path(store)
    if adding is not None:
        if adding in (opened := LabelStore(folder)).manifest.signals:
            return opened.settings_of(adding)
        folder /= f"{ADDING}{manifests.check_name(adding)}"
    elif (folder / MANIFEST).exists():
        return LabelStore(folder).settings
    if not (folder / SETTINGS).exists():
        raise InputError(f"{folder} holds no labels; check the path")
    return settings_in(folder)
