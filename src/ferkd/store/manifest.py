"""The manifest: all that a store says of itself, as canonical JSON with a digest of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
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
from ferkd.store.features import Codec, FeatureFormat
from ferkd.store.records import MAX_CLASSES, RecordFormat, Summary, Values
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

FORMAT = "ferkd-labels"
VERSION = 2
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
    ``rows`` x ``columns`` cells of a label map, row by row, ``count`` in all. "given": ``count``
    crops of the user's own, of which ``digest`` is the SHA-256. A kind writes its own
    keys alone, and "random" not its name: so stores written before there were maps keep their
    bytes.
    """

    kind: Literal["random", "grid", "given"] = "random"
    count: int = Field(ge=1)
    distribution: CropDistribution = CropDistribution()
    seed: int = 0
    rows: int = Field(default=0, ge=0)
    columns: int = Field(default=0, ge=0)
    digest: str = ""
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
        foreign = self._foreign & self.model_fields_set
        missing = _KEYS_OF[self.kind] - self.model_fields_set
        if foreign or missing:
            wrong = f"without {sorted(missing)}" if missing else f"with {sorted(foreign)}"
            raise ValueError(f"crops of kind {self.kind} {wrong}")
        return self

    @property
    def _foreign(self) -> set[str]:
        """The keys of other kinds alone."""
        return {key for kind, keys in _KEYS_OF.items() if kind != self.kind for key in keys}

    @model_serializer(mode="wrap")
    def _of_its_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        other = self._foreign | ({"kind"} if self.kind == "random" else set())
        return {key: value for key, value in written.items() if key not in other}


_KEYS_OF = {
    "random": frozenset({"distribution", "seed"}),
    "grid": frozenset({"rows", "columns"}),
    "given": frozenset({"digest"}),
}


class Images(Part):
    """Which images were labelled and how they were decoded."""

    decoder: str
    exif: bool
    listing: str = Field(description="SHA-256 of all image ids offered, each followed by NUL")


class Vectors(Part):
    """The form of stored features; see :class:`ferkd.store.features.FeatureFormat`.

    ``per`` "image" is one vector of each whole image, "crop" one of each crop. ``layer`` says
    where in the network they were taken; ``normalised`` vectors had the length 1 when stored.
    """

    dim: int = Field(ge=1)
    codec: Codec
    per: Literal["crop", "image"] = "crop"
    layer: str = "penultimate"
    normalised: bool = False

    @property
    def format(self) -> FeatureFormat:
        return FeatureFormat(self.dim, self.codec)


Kind = Literal["labels", "features"]
NAME = r"[a-z0-9][a-z0-9_-]{0,47}"  # of a signal, which begins its files' names
RESERVED = frozenset({"boxes", "parts", "adding"})


class GeometrySettings(Part):
    """What determines a store's images and crops."""

    crops: Crops
    images: Images
    class_names: tuple[str, ...]
    targets: bool
    part_images: int = Field(ge=1)
    software: str


class SignalSettings(Part):
    """What determines a signal's bytes besides the images and crops.

    Kind "labels" has ``record``, kind "features" has ``vectors``. ``class_names`` None: those of
    the geometry.
    """

    kind: Kind
    record: Record | None = None
    vectors: Vectors | None = None
    teacher: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    software: str

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if (self.record is not None, self.vectors is not None) != (
            self.kind == "labels",
            self.kind == "features",
        ):
            raise ValueError(f"a signal of kind {self.kind} with the form of another")
        return self

    @property
    def format(self) -> RecordFormat | FeatureFormat:
        form = self.record or self.vectors
        assert form is not None
        return form.format

    def width(self, crops: int) -> int:
        """Records of an image that has ``crops`` crops."""
        return 1 if self.vectors is not None and self.vectors.per == "image" else crops

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name."""
        return _flat(self.model_dump(mode="json", exclude_none=True))


class Settings(Part):
    """Of a store as one signal shows it: what determines its bytes besides the images.

    A pass that makes a store fixes them before the first label; one of ``record`` and ``vectors``
    is given.
    """

    record: Record | None = None
    vectors: Vectors | None = None
    crops: Crops
    images: Images
    teacher: dict[str, Any]
    class_names: tuple[str, ...]
    targets: bool
    part_images: int = Field(ge=1)
    software: str

    @staticmethod
    def of(geometry: GeometrySettings, signal: SignalSettings | None) -> Settings:
        """The two together; without a signal only what the geometry says."""
        names = None if signal is None else signal.class_names
        return Settings(
            record=signal.record if signal else None,
            vectors=signal.vectors if signal else None,
            crops=geometry.crops,
            images=geometry.images,
            teacher=signal.teacher if signal else {},
            class_names=geometry.class_names if names is None else names,
            targets=geometry.targets and names is None,  # else the truth is of other classes
            part_images=geometry.part_images,
            software=signal.software if signal else geometry.software,
        )

    @property
    def geometry(self) -> GeometrySettings:
        return GeometrySettings(
            crops=self.crops,
            images=self.images,
            class_names=self.class_names if self.targets else (),
            targets=self.targets,
            part_images=self.part_images,
            software=self.software,
        )

    def signal(self, names: tuple[str, ...]) -> SignalSettings:
        """The signal's part in a store whose geometry names the classes ``names``."""
        return SignalSettings(
            kind="labels" if self.record else "features",
            record=self.record,
            vectors=self.vectors,
            teacher=self.teacher,
            class_names=None if self.class_names == names or self.vectors else self.class_names,
            software=self.software,
        )

    @property
    def labels(self) -> Record:
        """The form of the labels; InputError where there are none."""
        if self.record is None:
            raise InputError("the store holds no labels, only features; label its crops first")
        return self.record

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name, as in ``crops.seed``, for comparison."""
        return _flat(self.model_dump(mode="json", exclude_none=True))


class File(Part):
    """One data file: its rows, bytes and checksum."""

    name: str = Field(pattern=rf"^(images|ids|flips|{NAME}-\d{{5}})\.npy$")
    rows: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


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
    """What one teacher said of the crops: its files' rows follow each other as the images do."""

    settings: SignalSettings
    files: tuple[File, ...]


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
        of_signals = (file for signal in self.signals.values() for file in signal.files)
        return (*self.geometry.files, *of_signals)

    def only(self, names: Iterable[str]) -> Manifest:
        """The same store with these signals alone. Raises InputError for one that is not there."""
        kept = {}
        for name in names:
            if name not in self.signals:
                raise InputError(f"there is no signal {name!r}; {listed(self)}")
            kept[name] = self.signals[name]
        return Manifest(geometry=self.geometry, signals=dict(sorted(kept.items())))

    def with_signal(self, name: str, signal: Signal) -> Manifest:
        """The same store with one signal more."""
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
        for signal in self.signals.values():
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


def check_kind(
    settings: Settings | GeometrySettings, kind: Literal["random", "grid"], where: object
) -> None:
    """Raise InputError where labels of crops are needed and these are maps, or the reverse."""
    crops = settings.crops
    if crops.is_map == (kind == "grid"):
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
