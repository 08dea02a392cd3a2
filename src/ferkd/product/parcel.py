"""What of a folder is sent elsewhere: a store's, a run's or an exported model's files, listed.

The listing of a run or an export, ``ferkd.json``, names every file with its size and SHA-256. Only
names that such a folder may hold are taken from one, so a listing from elsewhere cannot name a
path. A label store has its own listing, the manifest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ferkd.models.student import finished_run
from ferkd.product import bundle
from ferkd.product.claim import MARKER
from ferkd.store.reader import LabelStore
from ferkd.store.remote import MANIFEST, Expected
from ferkd.system.errors import InputError
from ferkd.system.settings import Part, rule

LISTING = "ferkd.json"
MOST_LISTING = 1 << 20  # bytes

Kind = Literal["store", "run", "export"]

# A checkpoint stays at home: it serves to go on in place, and is thrice the size of the weights.
FILES: dict[str, tuple[str, ...]] = {
    "run": ("weights.safetensors", "config.json", "result.json", "recipe.yaml", "metrics.jsonl"),
    "export": bundle.FILES,
}
_NEEDED = {
    "run": ("weights.safetensors", "config.json"),
    "export": (bundle.WEIGHTS, bundle.CONFIG, bundle.LABELS),
}


class _Entry(Part):
    name: str
    size: int = Field(ge=0, lt=1 << 44)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Listing(Part):
    format: Literal["ferkd-files"]
    version: Literal[1]
    kind: Literal["run", "export"]
    files: tuple[_Entry, ...]


@dataclass(frozen=True)
class Parcel:
    """A kind of folder and its files as they must arrive; ``data`` are the bytes of the listing,
    which is written last and named ``listing``."""

    kind: Kind
    files: tuple[Expected, ...]
    listing: str
    data: bytes

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def pack(folder: Path) -> Parcel:
    """The files of a local store, finished run or export. Raises InputError for anything else."""
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a label store, a run or an export")
    if (folder / MARKER).is_file():
        raise InputError(
            f"{folder} is a whole distillation; give one of its parts: {folder / 'model'}, "
            f"{folder / 'student'} or {folder / 'labels'}"
        )
    if (folder / MANIFEST).is_file():
        return _of_store(folder)
    if bundle.is_bundle(folder):
        bundle.read_record(folder)  # refuses what was edited
        return _of_files(folder, "export")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is neither a label store nor a run nor an exported model; give one of these"
        )
    finished_run(folder)
    return _of_files(folder, "run")


def _of_store(folder: Path) -> Parcel:
    manifest = LabelStore.open(folder).manifest
    data = (folder / MANIFEST).read_bytes()
    return Parcel("store", tuple(Expected.of(file) for file in manifest.files), MANIFEST, data)


def _of_files(folder: Path, kind: Literal["run", "export"]) -> Parcel:
    files = []
    for name in FILES[kind]:
        path = folder / name
        if path.is_file():
            files.append(Expected(name, path.stat().st_size, bundle.sha256(path)))
    content = {
        "format": "ferkd-files",
        "version": 1,
        "kind": kind,
        "files": [file._asdict() for file in sorted(files)],
    }
    data = json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
    return Parcel(kind, tuple(sorted(files)), LISTING, data)


def unpack(data: bytes, where: str) -> Parcel:
    """A listing from elsewhere, read with suspicion. Raises InputError."""
    try:
        found = _Listing.model_validate_json(data)
    except ValidationError as error:
        raise InputError(
            f"{LISTING} of {where} is damaged or of another version "
            f"({rule(error.errors()[0]['msg'])}); push it again"
        ) from None
    names = [file.name for file in found.files]
    odd = [name for name in names if name not in FILES[found.kind] or names.count(name) > 1]
    if odd:
        raise InputError(
            f"{LISTING} of {where} names {odd[0]!a}, which is no file of its kind ({found.kind}); "
            "nothing was fetched"
        )
    lacking = [name for name in _NEEDED[found.kind] if name not in names]
    if lacking:
        raise InputError(f"{LISTING} of {where} lacks {lacking[0]}; push it again")
    files = tuple(Expected(file.name, file.size, file.sha256) for file in found.files)
    return Parcel(found.kind, files, LISTING, data)
