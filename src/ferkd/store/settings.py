"""What determines a store's bytes besides the images: of its geometry, and of each signal."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ferkd.crops import CropDistribution
from ferkd.store.features import MAX_DIM, Codec, FeatureFormat
from ferkd.store.records import RecordFormat, Summary, Values
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

MAX_CROPS = 1_000_000  # of an image: what is more was not meant, and fits no memory
_NESTED = 100  # levels of what is told of a teacher; a merge of merges has four a merge
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
    count: int = Field(ge=1, le=MAX_CROPS)
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

    dim: int = Field(ge=1, le=MAX_DIM)
    codec: Codec
    per: Literal["crop", "image"] = "crop"
    layer: str = "penultimate"
    normalised: bool = False

    @property
    def format(self) -> FeatureFormat:
        return FeatureFormat(self.dim, self.codec)


Kind = Literal["labels", "features"]


def _of_bounded_depth(value: Any, left: int = _NESTED) -> Any:
    """``value``, which is written out again and compared; ValueError where it is nested deeper."""
    if left == 0:
        raise ValueError(f"nested deeper than {_NESTED} levels")
    inside = value.values() if isinstance(value, dict) else value
    for inner in inside if isinstance(value, dict | list | tuple) else ():
        _of_bounded_depth(inner, left - 1)
    return value


Told = Annotated[dict[str, Any], AfterValidator(_of_bounded_depth)]  # of a teacher


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
    teacher: Told
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
    teacher: Told
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


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
