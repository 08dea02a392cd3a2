"""The recipe of a training run: a strict tree of settings, and how one is read.

Each part of the tree lies beside the component that it configures. A recipe is YAML::

    method: ferkd
    data: {images: data/train, val: data/val, store: labels}
    student: {name: timm/resnet18}
    schedule: {epochs: 60}
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ferkd.calibration.regions import Regions
from ferkd.crops import CropDistribution
from ferkd.loading.mixing import Mix
from ferkd.loading.processes import WorkerKind
from ferkd.methods import METHODS, loss_settings, problem, with_defaults
from ferkd.methods.base import LossSettings
from ferkd.models.student import Student
from ferkd.system.compute import Precision
from ferkd.system.errors import InputError
from ferkd.system.plain import parse_yaml, read_yaml, yaml_value
from ferkd.system.settings import Part, explain, explained
from ferkd.training.optim import OptimizerConfig
from ferkd.training.schedule import MOST_EPOCHS, Schedule


class Data(Part):
    """Where images and labels are, relative to the working directory, and how they are batched.

    ``batch_size`` counts crops and ``crops_per_image`` (m) is how many an image shows at a visit;
    unset, it is 1 for hard, kd, funmatch, relabel and pskd and 4 for the others. ``crops`` is the
    distribution of those methods' random crops; the labels of stored crops bring their own.
    ``store`` holds labels of crops, or label maps for relabel. With ``partial`` it may still be
    being written: see docs/scaling.md.

    ``workers`` load images, as threads or as processes; 0 loads between the steps.
    ``scaled_decoding`` decodes large JPEG files no larger than their crops need. ``cache`` keeps
    decoded images in memory or in a file under ``cache_dir`` (unset: the user's cache folder), made
    smaller where their shorter side is longer than ``cache_side``, in at most ``cache_limit_gb``
    gigabytes (unset: half of the free memory, nine tenths of the free disk space).

    ``cut``: where crops are cut, by the "workers" that decode, or on the training "device", to
    which decoded images are then sent whole. "auto" is workers for now, also with a GPU: nobody has
    measured the other on one yet.
    """

    images: str
    val: str | None = None
    store: str | None = None
    partial: bool = False
    image_size: int = Field(default=224, ge=8)
    crops_per_image: int = Field(default=4, ge=1)
    batch_size: int = Field(default=256, ge=1)
    workers: int = Field(default=2, ge=0)
    worker_kind: WorkerKind = "threads"
    scaled_decoding: bool = True
    cut: Literal["auto", "workers", "device"] = "auto"
    cache: Literal["none", "ram", "disk"] = "none"
    cache_side: int | None = Field(default=None, ge=8)
    cache_limit_gb: float | None = Field(default=None, gt=0)
    cache_dir: str | None = None
    crops: CropDistribution = CropDistribution()

    @model_validator(mode="after")
    def _kept_copies_are_large_enough(self) -> Data:
        if self.cache_side is not None and self.cache_side < self.image_size:
            raise ValueError(
                f"cache_side {self.cache_side} is below image_size {self.image_size}: every crop "
                "would be enlarged; raise it, to twice image_size or more"
            )
        return self


class Evaluation(Part):
    """When and how the student is evaluated on ``data.val``.

    Every ``every_epochs`` (counted in crops) and at the end, or only at the end with None. The
    central crop has ``crop_fraction`` of the image's shorter side.
    """

    every_epochs: float | None = Field(default=5.0, gt=0, le=MOST_EPOCHS)
    batch_size: int = Field(default=256, ge=1)
    crop_fraction: float = Field(default=0.875, gt=0, le=1)


class Recipe(Part):
    """Everything that decides how a run goes.

    ``method`` decides what else is read, so that recipes may differ in it alone: ``teacher``, the
    spec of a live one, by kd and funmatch (it runs in ``teacher_precision``; unset, in that of the
    student; ``class_map`` says which of its classes the folders are, as ``ferkd label --class-map``
    does), ``regions`` by ferkd and ferkd-paper, ``mix`` by all.
    ``ema`` is the decay of an average of the weights, which is then what is evaluated and kept;
    ``clip_grad`` the largest norm of the gradient; None turns either off. ``frozen_statistics``
    keeps the running statistics of BatchNorm as they came, for fine-tuning. A step's crops are
    worked through in ``accumulate`` parts, for less memory; ``sync_batchnorm`` normalises over the
    crops of all processes. A state to resume from is saved every ``checkpoint_seconds``, losses are
    reported every ``log_steps``.
    """

    method: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: Data
    teacher: str | None = None
    teacher_precision: Precision | None = None
    class_map: str | None = None
    student: Student = Student()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule
    loss: SerializeAsAny[LossSettings] = Field(default_factory=dict, validate_default=True)
    regions: Regions = Regions()
    mix: Mix = Mix()
    ema: float | None = Field(default=None, ge=0, lt=1)
    clip_grad: float | None = Field(default=None, gt=0)
    frozen_statistics: bool = False
    device: str = "auto"
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    accumulate: int = Field(default=1, ge=1)
    sync_batchnorm: bool = False
    evaluation: Evaluation = Evaluation()
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    log_steps: int = Field(default=20, ge=1)
    tensorboard: bool = False

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_method(cls, value: Any) -> Any:
        return with_defaults(value)

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        _ = METHODS[name]  # its InputError is a ValueError
        return name

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        if "method" not in info.data:
            return LossSettings()
        try:
            return loss_settings(info.data["method"], value)
        except InputError as error:
            raise explained(error) from None

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if found := problem(self):
            raise ValueError(found)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain data for YAML or JSON; reads back to the same recipe."""
        kept = self.model_dump(mode="json")
        if self.schedule.warmup_epochs is not None:
            del kept["schedule"]["warmup"]
        return kept


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: the path of a YAML file, or the name of one shipped with ferkd.

    ``overrides`` are ``key=value`` with dotted keys and values in YAML
    (``optimizer.lr=1e-3``). Raises InputError with one line for each mistake.
    """
    settings = read_settings(recipe)
    for override in overrides:
        _override(settings, override)
    return make_recipe(settings)


def read_settings(recipe: str | Path) -> dict[str, Any]:
    """The keys that a recipe file or a shipped recipe gives, as written, not yet checked."""
    path = Path(recipe).expanduser()
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return parse_yaml(shipped_recipe(str(recipe)), f"recipe {recipe}")
    try:
        return read_yaml(path, "recipe")
    except FileNotFoundError:
        raise InputError(
            f"recipe file {recipe} does not exist; give a YAML file or a shipped recipe's name "
            "(ferkd recipes ls)"
        ) from None
    except OSError as error:
        raise InputError(f"recipe file {recipe} cannot be read: {error}") from None


def make_recipe(settings: dict[str, Any]) -> Recipe:
    """A recipe from plain data. Raises InputError with one line for each mistake."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(explain(error, Recipe, "recipe"))) from None


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with ferkd."""
    folder = resources.files("ferkd.training") / "recipes"
    if not folder.is_dir():
        return []
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def shipped_recipe(name: str) -> str:
    """The text of a shipped recipe. Raises InputError for an unknown name."""
    known = shipped_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(known) or 'none'}"
        raise InputError(
            f"recipe {name!r} is neither a file nor a shipped recipe; {hint} (ferkd recipes ls)"
        )
    return (resources.files("ferkd.training") / "recipes" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )


# A path is taken as it is: in YAML a "#", "&", "@", ":" or "," in it would say something else.
_PATHS = ("data.images", "data.val", "data.store", "data.cache_dir", "student.weights")


def _value(key: str, text: str, override: str) -> Any:
    text = text.strip()
    quoted = text.startswith(("'", '"')) and text.endswith(text[:1]) and len(text) > 1
    if key in _PATHS and not quoted and text not in ("", "~", "null"):
        return text
    return yaml_value(text, f"override {override!r}")


def _override(settings: dict[str, Any], override: str) -> None:
    """Put one ``a.b=value`` into ``settings``, in place."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"override {override!r} is not of the form key=value (optimizer.lr=0.001)")
    value = _value(".".join(parts), text, override)
    for part in parts[:-1]:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise InputError(f"override {override!r}: {part!r} is a value and holds no keys")
    settings[parts[-1]] = value
