"""The manifest: all that a store says of itself, as canonical JSON with a digest of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ferkd.store.features import MAX_DIM
from ferkd.store.records import MAX_CLASSES
from ferkd.store.settings import IMPORTED_RULE as IMPORTED_RULE
from ferkd.store.settings import MAX_CROPS as MAX_CROPS
from ferkd.store.settings import Crops as Crops
from ferkd.store.settings import GeometrySettings, SignalSettings
from ferkd.store.settings import Images as Images
from ferkd.store.settings import Kind as Kind
from ferkd.store.settings import Record as Record
from ferkd.store.settings import Settings as Settings
from ferkd.store.settings import Vectors as Vectors
from ferkd.store.settings import check_kind as check_kind
from ferkd.system.errors import InputError
from ferkd.system.settings import Part, rule

FORMAT = "ferkd-labels"
VERSION = 2
NAME = r"[a-z0-9][a-z0-9_-]{0,47}"  # of a signal, which begins its files' names
RESERVED = frozenset({"boxes", "parts", "adding"})


class File(Part):
    """One data file: its rows, bytes and checksum."""

    name: str = Field(pattern=rf"^(images|ids|flips|{NAME}-\d{{5}}|{NAME}\.{NAME})\.npy$")
    rows: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Table(File):
    """A side table: float32 [rows, dim]."""

    dim: int = Field(ge=1, le=MAX_DIM)


class Skipped(Part):
    """An image that could not be read, and why."""

    id: str
    reason: str


class Geometry(Part):
    """The images and their crops, which all signals share."""

    settings: GeometrySettings
    images: File
    ids: File
    flips: File
    boxes: tuple[File, ...]
    skipped: tuple[Skipped, ...]

    @property
    def files(self) -> tuple[File, ...]:
        return (self.images, self.ids, self.flips, *self.boxes)

    @property
    def content(self) -> tuple[Any, ...]:
        """What two geometries of the same images and crops have in common, by checksums: all but
        how the files were cut is compared by whoever needs more."""
        return (self.images.sha256, self.ids.sha256, self.flips.sha256, *_sums(self.boxes))


class Signal(Part):
    """What one teacher said of the crops: its files' rows follow each other as the images do.

    ``tables`` stand beside its records: a few vectors of the teacher's, such as the mean of each
    class (see :mod:`ferkd.store.tables`). A signal without any does not write the key.
    """

    settings: SignalSettings
    files: tuple[File, ...]
    tables: dict[str, Table] = Field(default_factory=dict)

    @property
    def every_file(self) -> tuple[File, ...]:
        """Of its records and its tables."""
        return (*self.files, *self.tables.values())

    @property
    def records(self) -> Signal:
        """The same signal without its tables, which come and go."""
        return Signal(settings=self.settings, files=self.files)

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        return written if self.tables else {k: v for k, v in written.items() if k != "tables"}


class Manifest(Part):
    """The whole of manifest.json, less its digest."""

    geometry: Geometry
    signals: dict[str, Signal]

    @property
    def images(self) -> File:
        return self.geometry.images

    @property
    def ids(self) -> File:
        return self.geometry.ids

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.geometry.skipped

    @property
    def files(self) -> tuple[File, ...]:
        """All data files."""
        of_signals = (file for signal in self.signals.values() for file in signal.every_file)
        return (*self.geometry.files, *of_signals)

    def only(self, names: Iterable[str]) -> Manifest:
        """The same store with these signals alone. Raises InputError for one that is not there."""
        kept = {}
        for name in names:
            if name not in self.signals:
                raise InputError(f"there is no signal {name!r}; {listed(self)}")
            kept[name] = self.signals[name]
        return Manifest(geometry=self.geometry, signals=dict(sorted(kept.items())))

    @property
    def without_tables(self) -> Manifest:
        """The same store without side tables."""
        signals = {name: signal.records for name, signal in self.signals.items()}
        return Manifest(geometry=self.geometry, signals=signals)

    def with_signal(self, name: str, signal: Signal) -> Manifest:
        """The same store with one signal more, or another in the place of one."""
        signals = dict(sorted({**self.signals, name: signal}.items()))
        return Manifest(geometry=self.geometry, signals=signals)

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        geometry = self.geometry
        _check_files("geometry", geometry.files[:3], ("images.npy", "ids.npy", "flips.npy"))
        for name, files in (("boxes", geometry.boxes), *_signal_files(self.signals)):
            if name != "boxes":
                check_name(name)
            _check_files(name, files, tuple(f"{name}-{i:05d}.npy" for i in range(len(files))))
            if (held := sum(file.rows for file in files)) != geometry.images.rows:
                raise ValueError(f"{geometry.images.rows} images, but {name} of {held}")
        if geometry.flips.rows != geometry.images.rows:
            raise ValueError(f"{geometry.images.rows} images, but flips of {geometry.flips.rows}")
        for name, signal in self.signals.items():
            for table, file in signal.tables.items():
                check_name(table)
                _check_files(f"table {table}", (file,), (f"{name}.{table}.npy",))
            record, names = signal.settings.record, signal.settings.class_names
            names = geometry.settings.class_names if names is None else names
            if record is None:
                continue
            if record.k > record.num_classes or record.num_classes > MAX_CLASSES:
                raise ValueError(f"top-{record.k} of {record.num_classes} classes")
            if names and len(names) != record.num_classes:
                raise ValueError(f"names {len(names)} classes, but has {record.num_classes}")
        return self


def check_name(name: str) -> str:
    """A signal's name; InputError for what is none."""
    if not re.fullmatch(NAME, name) or name in RESERVED:
        raise InputError(
            f"signal {name!r}: a name has 1 to 48 of a-z, 0-9, _ and -, begins with a letter or "
            f"digit and is none of {', '.join(sorted(RESERVED))}"
        )
    return name


def listed(manifest: Manifest) -> str:
    """The signals of a store, for messages."""
    if not manifest.signals:
        return "the store has none"
    named = (f"{name} ({signal.settings.kind})" for name, signal in manifest.signals.items())
    return f"the store has {', '.join(named)}"


def _signal_files(signals: dict[str, Signal]) -> list[tuple[str, tuple[File, ...]]]:
    return [(name, signal.files) for name, signal in signals.items()]


def _check_files(what: str, files: tuple[File, ...], names: tuple[str, ...]) -> None:
    if (found := tuple(file.name for file in files)) != names:
        raise ValueError(f"{what} does not name the files {', '.join(names)} but {found[:4]}")


def _sums(files: tuple[File, ...]) -> Iterator[str]:
    return (file.sha256 for file in files)


def to_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes: sorted keys, one-space indent, UTF-8, and the digest of all that."""
    body = {"format": FORMAT, "version": VERSION, **manifest.model_dump(mode="json")}
    return _canonical({**body, "digest": hashlib.sha256(_canonical(body)).hexdigest()})


def checksum(manifest: Manifest) -> str:
    """SHA-256 of the manifest's bytes, which names the store's whole content."""
    return hashlib.sha256(to_bytes(manifest)).hexdigest()


def from_bytes(data: bytes, where: Path | str) -> Manifest:
    """Read a manifest; raises InputError when it is damaged, foreign or of another version."""
    try:
        body = json.loads(data)
        digest = body.pop("digest")
        content = _canonical(body)  # fails too: JSON may hold half a surrogate pair
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(
            f"{where} is not a label store's manifest (JSON with a digest expected); fetch the "
            "store again"
        ) from None
    if body.get("format") == FORMAT and body.get("version") == 1:
        raise InputError(
            f"{where} is of version 1, which kept a crop's box and one teacher's label in one "
            "record; this release reads version 2: label again, no crop is lost but its label"
        )
    if body.get("format") != FORMAT or body.get("version") != VERSION:
        raise InputError(
            f"{where} has format {body.get('format')!r} version {body.get('version')!r}; this "
            f"release reads {FORMAT!r} version {VERSION}: label again or install a release that "
            "reads it"
        )
    intact = hashlib.sha256(content).hexdigest() == digest
    if not intact or _canonical({**body, "digest": digest}) != data:
        raise InputError(f"{where} is damaged: its content does not match its own digest")
    body = {key: value for key, value in body.items() if key not in ("format", "version")}
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = rule(first["msg"])
        raise InputError(
            f"{where} does not follow the format: {f'{place}: ' if place else ''}{what}; fetch the "
            "store again"
        ) from None


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
