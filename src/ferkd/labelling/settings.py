"""What decides how images are labelled: the settings of one labelling pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ferkd.crops import CropDistribution
from ferkd.labelling.maps import refuse_drawn
from ferkd.store.reader import LabelStore
from ferkd.system.errors import InputError
from ferkd.system.settings import check_seed, check_share

PART_IMAGES, PART_OF_MANY, MANY = 32, 256, 65_536  # images to a part; of sets larger than MANY
_CPU_PIXELS = 16 * 112 * 112  # of a forward pass on a CPU: larger ones leave its caches
_LARGEST = 128
_MOST_CROPS = 1_000_000  # of an image: what is more was not meant, and fits no memory


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

    kind: Literal["crops", "map", "features"] = "crops"
    crops_from: str | Path | None = None
    into: bool = False
    signal: str | None = None
    layer: str = "penultimate"
    normalised: bool = False
    per: Literal["crop", "image"] = "crop"
    crops: int | None = None
    top_k: int | None = 5
    values: str = "auto"
    distribution: CropDistribution | None = None
    image_size: int | None = None
    batch_size: int | None = None
    workers: int = 2
    seed: int | None = None
    device: str = "auto"
    precision: str = "auto"
    targets: bool = True
    class_map: str | Path | Mapping[str, Any] | None = None
    check_agreement: bool = True
    exif: bool = True
    max_unreadable: float = 0.01
    part_images: int | None = None
    boxes_from: str | Path | LabelStore | None = None
    add_to: str | Path | LabelStore | None = None

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
            refuse_drawn(
                crops=self.crops,
                distribution=self.distribution,
                seed=self.seed,
                boxes_from=self.boxes_from,
                add_to=self.add_to,
            )
        if self.crops is not None and not 1 <= self.crops <= _MOST_CROPS:
            raise InputError(
                f"crops is {self.crops}; label at least 1 crop per image, at most {_MOST_CROPS:,}"
            )
        check_share("max_unreadable", self.max_unreadable)
        if self.seed is not None:
            check_seed(self.seed)
        batch = 1 if self.batch_size is None else self.batch_size
        part = 1 if self.part_images is None else self.part_images
        if batch < 1 or self.workers < 1 or part < 1:
            raise InputError(
                f"batch_size {batch}, workers {self.workers} and part_images {part} "
                "must be at least 1"
            )
        if self.boxes_from is not None and self.add_to is not None:
            raise InputError(
                "boxes_from and add_to are both given; a pass builds on one store: give one"
            )
        if self.class_map is not None and not self.targets:
            raise InputError(
                "class_map is given, but without targets the folders are no classes; leave one out"
            )


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
