"""What decides how images are labelled: the settings of one labelling pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ferkd.system.errors import InputError

if TYPE_CHECKING:  # the command line reads the fields, and loads nothing that takes seconds
    from ferkd.crops import CropDistribution
    from ferkd.store.reader import LabelStore

PART_IMAGES, PART_OF_MANY, MANY = 32, 256, 65_536  # images to a part; of sets larger than MANY
_CPU_PIXELS = 16 * 112 * 112  # of a forward pass on a CPU: larger ones leave its caches
_LARGEST = 128


def said(help: str, *, flag: str | None = None) -> dict[str, str | None]:
    """What ``ferkd label --help`` says of a field, and the ``flag`` that turns it off."""
    return {"help": help, "flag": flag}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Settings of :func:`ferkd.label`; what is None is chosen and written into the manifest.

    - ``kind``: "crops", or "map" for the cells of a grid over each whole image (ReLabel), or
      "features" for the teacher's features of the crops: taken at ``layer``, ``normalised`` to
      length 1 or not, ``per`` "crop" or whole "image"; see
      :class:`ferkd.labelling.features.FeatureTeacher`.
    - ``crops_from`` labels the crops of a JSON or Parquet file instead of drawn ones; see
      :func:`ferkd.labelling.given.read_crops`.
    - ``into``: a signal is added to the finished store at ``out``, of its very crops. ``signal`` is
      the name [labels, or features].
    - ``crops`` an image [50], drawn from ``distribution`` with ``seed`` [0]; ``boxes_from`` labels
      the crops of another store instead, ``add_to`` adds crops to those of one.
    - ``top_k`` classes are kept of a crop, None for all, in the number type ``values``.
    - ``image_size`` in pixels is the teacher's own where it is None. ``batch_size`` crops (of a
      map: images) go through it together; None chooses by device, see :func:`default_batch`. It
      runs on ``device`` in ``precision``; ``workers`` threads decode and cut.
    - ``targets``: the folders are classes and the ground truth. ``class_map`` says which of the
      teacher's classes they are, where order and names do not; see
      :func:`ferkd.models.classes.match_folders`. ``check_agreement`` ends a pass whose labels agree
      with the ground truth no more than by chance, or far less than in another order.
    - ``exif``: images are turned as their EXIF orientation says. More unreadable ones than the
      share ``max_unreadable`` end the pass. ``part_images`` make a part, all that a kill costs;
      None chooses by the number of images, see :func:`default_part`.

    Raises InputError for numbers out of range and settings that exclude each other.
    """

    into: bool = False
    signal: str | None = field(
        default=None, metadata=said("The signal's name [labels, or features].")
    )
    kind: Literal["crops", "map", "features"] = field(
        default="crops",
        metadata=said("map: one label map per image (ReLabel); features of crops."),
    )
    layer: str = field(
        default="penultimate", metadata=said("Features: penultimate, output or a submodule's name.")
    )
    normalised: bool = field(default=False, metadata=said("Features: each of length 1."))
    per: Literal["crop", "image"] = field(
        default="crop", metadata=said("Features: of each crop, or of the whole image.")
    )
    crops: int | None = field(default=None, metadata=said("Random crops per image [50]."))
    top_k: int | None = field(default=5, metadata=said("Classes kept per crop; 0 keeps all."))
    values: Literal["auto", "u8", "f16", "f32", "i8"] = field(
        default="auto", metadata=said("Number type; of features i8 or f16.")
    )
    distribution: CropDistribution | None = None
    crops_from: str | Path | None = field(
        default=None, metadata=said("Label the crops of this file (JSON or Parquet).")
    )
    boxes_from: str | Path | LabelStore | None = field(
        default=None, metadata=said("Label the very crops of this store, by another teacher.")
    )
    add_to: str | Path | LabelStore | None = field(
        default=None, metadata=said("Copy this store's labels and add crops up to --crops.")
    )
    image_size: int | None = field(
        default=None, metadata=said("Pixels; the teacher's own if unset.")
    )
    batch_size: int | None = field(
        default=None, metadata=said("Crops (or images) per forward pass; by device if unset.")
    )
    workers: int = field(default=2, metadata=said("Threads that load images."))
    seed: int | None = field(default=None, metadata=said("Of the crops [0]."))
    device: str = field(default="auto", metadata=said("auto, cpu, cuda, cuda:N or mps."))
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", metadata=said("Of the arithmetic.")
    )
    targets: bool = field(
        default=True,
        metadata=said("The folders are not the teacher's classes.", flag="--no-targets"),
    )
    class_map: str | Path | Mapping[str, Any] | None = field(
        default=None,
        metadata=said(
            "JSON or text file of folder and teacher class, or: sorted, natural, number."
        ),
    )
    check_agreement: bool = field(
        default=True,
        metadata=said("Accept labels that deny the folders.", flag="--no-agreement-check"),
    )
    exif: bool = field(
        default=True, metadata=said("Ignore the EXIF orientation of images.", flag="--no-exif")
    )
    max_unreadable: float = field(
        default=0.01, metadata=said("Largest share of unreadable images.")
    )
    part_images: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("crops", "map", "features"):
            raise InputError(f"kind is {self.kind!r}; it must be crops, map or features")
        if self.per not in ("crop", "image"):
            raise InputError(f"per is {self.per!r}; it must be crop or image")
        if self.kind != "features" and (
            self.layer != "penultimate" or self.normalised or self.per != "crop"
        ):
            raise InputError(
                "layer, normalised and per are of features; leave them out, or give kind features"
            )
        if self.into and (self.boxes_from is not None or self.add_to is not None):
            raise InputError(
                "into labels the crops of the store that is added to; leave out boxes_from and "
                "add_to"
            )
        if self.crops_from is not None:
            drawn = (self.crops, self.seed, self.distribution, self.boxes_from, self.add_to)
            if self.into or self.kind == "map" or any(value is not None for value in drawn):
                raise InputError(
                    "crops_from gives the crops, so nothing else may: leave out crops, seed, "
                    "distribution, boxes_from, add_to, into and kind map"
                )
        if self.into and self.kind == "map":
            raise InputError(
                "into adds a signal of crops, but kind is map; make a store of maps of its own"
            )
        if self.kind == "features" and self.add_to is not None:
            raise InputError("add_to adds labels of more crops; features are added by into")
        if self.kind == "map":
            _refuse_drawn(
                crops=self.crops,
                distribution=self.distribution,
                seed=self.seed,
                boxes_from=self.boxes_from,
                add_to=self.add_to,
            )
        from ferkd.store.settings import MAX_CROPS

        if self.crops is not None and not 1 <= self.crops <= MAX_CROPS:
            raise InputError(
                f"crops is {self.crops}; label at least 1 crop per image, at most {MAX_CROPS:,}"
            )
        from ferkd.system.settings import check_least, check_seed, check_share

        check_share("max_unreadable", self.max_unreadable)
        if self.seed is not None:
            check_seed(self.seed)
        given = {"batch_size": self.batch_size, "part_images": self.part_images}
        check_least(1, workers=self.workers, **{k: n for k, n in given.items() if n is not None})
        if self.boxes_from is not None and self.add_to is not None:
            raise InputError(
                "boxes_from and add_to are both given; a pass builds on one store: give one"
            )
        if self.class_map is not None and not self.targets:
            raise InputError(
                "class_map is given, but without targets the folders are no classes; leave one out"
            )

    @property
    def name(self) -> str:
        """The signal that the pass writes."""
        return self.signal or ("features" if self.kind == "features" else "labels")

    @property
    def unreadable_limit(self) -> float:
        """The largest share of images left out: what another store left out was accepted when it
        was made."""
        known = self.into or self.boxes_from is not None or self.add_to is not None
        return 1.0 if known else self.max_unreadable


def default_part(images: int) -> int:
    """Images to a part of a set of ``images``: few, so that a kill costs little; more where the
    parts themselves would be tens of thousands of files."""
    return PART_OF_MANY if images > MANY else PART_IMAGES


def default_batch(device: str, image_size: int) -> int:
    """Crops of a forward pass where nobody says: 128 on an accelerator; on a CPU as many as have
    the pixels of 16 crops of 112 px, a power of two from 1 to 128.

    A CPU gains nothing from larger batches, whose activations leave its caches; see
    docs/lab-log.md for what was measured.
    """
    if device != "cpu":
        return _LARGEST
    fitting = max(1, _CPU_PIXELS // image_size**2)
    return min(_LARGEST, 1 << (fitting.bit_length() - 1))


def _refuse_drawn(**options: object) -> None:
    """Raise InputError for options that say which crops to draw: None where they do not."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} is given, but a label map has the cells of a grid and no drawn crops; "
                f"leave {name} out, or label crops (--kind crops)"
            )
