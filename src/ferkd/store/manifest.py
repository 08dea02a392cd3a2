"""The manifest: all that a store says of itself, as canonical JSON with a digest of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ferkd.crops import CropDistribution
from ferkd.store.records import MAX_CLASSES, RecordFormat, Summary, Values
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

FORMAT = "ferkd-labels"
VERSION = 1
IMPORTED_RULE = "imported: "  # begins the crop rule of labels that were not made by ferkd


class Record(Part):
    """The form of the records; see :class:`ferkd.store.records.RecordFormat`."""

    k: int = Field(ge=1)
    num_classes: int = Field(ge=1)
    values: Values
    tail: Summary = "tempered"

    @property
    def format(self) -> RecordFormat:
        return RecordFormat(self.k, self.num_classes, self.values, self.tail)


class Crops(Part):
    """Which crops were labelled and how they were cut.

    ``kind`` "random": ``count`` crops drawn from ``distribution`` with ``seed``. "grid": the
    ``rows`` x ``columns`` cells of a label map, row by row, ``count`` in all. A kind writes its own
    keys alone, and "random" not its name: so stores written before there were maps keep their
    bytes.
    """

    kind: Literal["random", "grid"] = "random"
    count: int = Field(ge=1)
    distribution: CropDistribution = CropDistribution()
    seed: int = 0
    rows: int = Field(default=0, ge=0)
    columns: int = Field(default=0, ge=0)
    rule: str

    @property
    def is_map(self) -> bool:
        """Whether these are the cells of label maps."""
        return self.kind == "grid"

    @property
    def grid(self) -> dict[str, str]:
        """The figure ``map_grid``, as "7x7", for label maps; nothing for random crops."""
        return {"map_grid": f"{self.rows}x{self.columns}"} if self.is_map else {}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.is_map and self.rows * self.columns != self.count:
            raise ValueError(f"a grid of {self.rows}x{self.columns} has no {self.count} cells")
        foreign = _KEYS_OF["random" if self.is_map else "grid"] & self.model_fields_set
        missing = _KEYS_OF[self.kind] - self.model_fields_set
        if foreign or missing:
            wrong = f"without {sorted(missing)}" if missing else f"with {sorted(foreign)}"
            raise ValueError(f"crops of kind {self.kind} {wrong}")
        return self

    @model_serializer(mode="wrap")
    def _of_its_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        other = _KEYS_OF["grid"] | {"kind"} if not self.is_map else _KEYS_OF["random"]
        return {key: value for key, value in written.items() if key not in other}


_KEYS_OF = {
    "random": frozenset({"distribution", "seed"}),
    "grid": frozenset({"rows", "columns"}),
}


class Images(Part):
    """Which images were labelled and how they were decoded."""

    decoder: str
    exif: bool
    listing: str = Field(description="SHA-256 of all image ids offered, each followed by NUL")


class Settings(Part):
    """What determines a store's bytes besides the images: fixed before the first label."""

    record: Record
    crops: Crops
    images: Images
    teacher: dict[str, Any]
    class_names: tuple[str, ...]
    targets: bool
    part_images: int = Field(ge=1)
    software: str

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name, as in ``crops.seed``, for comparison."""
        return _flat(self.model_dump(mode="json"))


class File(Part):
    """One data file: its rows, bytes and checksum."""

    name: str = Field(pattern=r"^(images|ids|records-\d{5})\.npy$")
    rows: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Skipped(Part):
    """An image that could not be read, and why."""

    id: str
    reason: str


class Manifest(Part):
    """The whole of manifest.json, less its digest."""

    settings: Settings
    images: File
    ids: File
    records: tuple[File, ...]
    skipped: tuple[Skipped, ...]

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        record, names = self.settings.record, self.settings.class_names
        if record.k > record.num_classes or record.num_classes > MAX_CLASSES:
            raise ValueError(f"top-{record.k} of {record.num_classes} classes")
        if names and len(names) != record.num_classes:
            raise ValueError(f"names {len(names)} classes, but has {record.num_classes}")
        if (held := sum(file.rows for file in self.records)) != self.images.rows:
            raise ValueError(f"{self.images.rows} images, but records of {held}")
        listed = [file.name for file in (self.images, self.ids, *self.records)]
        wanted = [f"records-{number:05d}.npy" for number in range(len(self.records))]
        if listed != ["images.npy", "ids.npy", *wanted]:
            raise ValueError(
                f"does not name the files images.npy, ids.npy and records in order: {listed[:4]}"
            )
        return self


def check_kind(settings: Settings, kind: Literal["random", "grid"], where: object) -> None:
    """Raise InputError where labels of crops are needed and these are maps, or the reverse."""
    crops = settings.crops
    if crops.kind == kind:
        return
    if crops.is_map:
        raise InputError(
            f"{where} holds label maps ({crops.rows}x{crops.columns} cells of whole images), but "
            "labels of random crops are needed here; train from maps with method relabel, or make "
            "labels with ferkd label --kind crops"
        )
    raise InputError(
        f"{where} holds labels of random crops, but label maps are needed here; make them with "
        "ferkd label --kind map, or train from these labels with method fkd or ferkd"
    )


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
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{where} does not follow the format: {f'{place}: ' if place else ''}{what}; fetch the "
            "store again"
        ) from None


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
