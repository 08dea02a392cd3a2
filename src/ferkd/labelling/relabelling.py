"""What a labelling pass shows its teacher, also over images that a store holds already: its crops
for another teacher (``boxes_from``), or more crops by the same one (``add_to``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from heapq import merge
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.crops import random_boxes
from ferkd.images import ImageSource
from ferkd.labelling.given import NO_CROP, GivenCrops
from ferkd.labelling.maps import grid_boxes
from ferkd.store import manifest as manifests
from ferkd.store.reader import LabelStore
from ferkd.store.writer import listing
from ferkd.system.errors import InputError


@dataclass(frozen=True)
class ShownCrops:
    """Which crops of an image a pass shows its teacher.

    All ``crops.count`` drawn ones; with a ``base``, the crops of that store; with ``first`` > 0,
    those drawn after its first ones, whose records are taken over as they are. For a label map
    the whole image, which gives a record for each cell.
    """

    crops: manifests.Crops
    base: LabelStore | None = None
    first: int = 0
    given: GivenCrops | None = None  # from a file, in the place of drawn ones
    whole: bool = False  # the whole image once, for a signal of images

    @property
    def new(self) -> int:
        """The number of records per image that the pass makes."""
        return 1 if self.whole else self.crops.count - self.first

    def draw(
        self, image_id: str, height: int, width: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Boxes [n, 4] and flips [n] to show of an image of this size in pixels."""
        if self.crops.is_map or self.whole:
            return np.array([[0, 0, height, width]], np.int32), np.zeros(1, bool)
        if self.base is not None and not self.first:
            return self._stored(image_id, self.base)
        if self.given is not None:
            return self.given.draw(image_id, height, width)
        boxes, flips = random_boxes(
            [height],
            [width],
            crops=self.crops.count,
            seed=self.crops.seed,
            ids=[image_id],
            distribution=self.crops.distribution,
        )
        if self.base is not None:
            old_boxes, old_flips = self._stored(image_id, self.base)
            same = (boxes[0, : self.first] == old_boxes).all()
            if not same or (flips[0, : self.first] != old_flips).any():
                raise InputError(
                    f"the crops of {image_id} in {self.base.path} are not those that its settings "
                    "draw, so no more of them can be drawn; label again with as many as you need"
                )
        return boxes[0, self.first :], flips[0, self.first :]

    def recorded(
        self, boxes: NDArray[np.int32], flips: NDArray[np.bool_], targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """Boxes, flips and targets of the records that these [B] crops give: theirs, or [B * count]
        for whole images, whose cells follow each other."""
        if not self.crops.is_map:
            return boxes, flips, targets
        cells = grid_boxes(boxes[:, 2], boxes[:, 3], self.crops.rows, self.crops.columns)
        count = self.crops.count
        return cells.reshape(-1, 4), np.repeat(flips, count), np.repeat(targets, count)

    def joined(
        self,
        ids: list[str],
        boxes: NDArray[np.integer],
        flips: NDArray[np.bool_],
        records: NDArray[Any],
    ) -> tuple[NDArray[np.integer], NDArray[np.bool_], NDArray[Any]]:
        """Boxes [n, count, 4], flips and records [n, count] of the images ``ids``, from those of
        the new crops [n, new]."""
        if self.whole:
            shown = replace(self, whole=False)
            sizes = (boxes[:, 0, 2:] if len(ids) else np.zeros((0, 2), int)).tolist()
            drawn = [shown.draw(i, *size) for i, size in zip(ids, sizes, strict=True)]
            boxes = np.zeros((len(ids), self.crops.count, 4), np.int32)
            flips = np.zeros((len(ids), self.crops.count), bool)
            for row, (box, flip) in enumerate(drawn):
                boxes[row], flips[row] = box, flip
            return boxes, flips, records
        if self.base is None or not self.first:
            return boxes, flips, records
        rows = np.array([self.base.ids.find(i) for i in ids], np.int64)[:, None]
        first = rows, np.arange(self.first)
        return (
            np.concatenate([self.base.boxes(*first), boxes], 1),
            np.concatenate([self.base.flips(*first), flips], 1),
            np.concatenate([self.base.records(*first), records], 1),
        )

    def skipped(self, image_id: str) -> str | None:
        """Why this image is left out: by the base store, or without a crop; None if it is not."""
        if self.given is not None and image_id not in self.given.of:
            return NO_CROP
        return self._skipped.get(image_id)

    def check_left_out(self, image_id: str, reason: str) -> None:
        """Raise InputError when an image that cannot be read is one that the base labelled."""
        if self.base is not None:
            raise InputError(
                f"{image_id} cannot be read ({reason}), but was labelled for {self.base.path}; "
                "use the images that were labelled"
            )

    def check(self, image_id: str, fingerprint: int, height: int, width: int) -> None:
        """Raise InputError when an image is not the one that the base store labelled."""
        if self.base is None:
            return
        stored = self.base.images[self.base.ids.find(image_id)]
        if int(stored["fingerprint"]) != fingerprint:
            raise InputError(
                f"{image_id} is not the file that was labelled for {self.base.path} (its content "
                "differs); use the images that were labelled"
            )
        if (int(stored["height"]), int(stored["width"])) != (height, width):
            raise InputError(
                f"{image_id} is {height}x{width} pixels, but was labelled for {self.base.path} at "
                f"{stored['height']}x{stored['width']}; decode as then (EXIF orientation, decoder)"
            )

    @cached_property
    def _skipped(self) -> dict[str, str]:
        if self.base is None:
            return {}
        return {s.id: s.reason for s in self.base.manifest.skipped}

    def _stored(
        self, image_id: str, base: LabelStore
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        row, every = base.ids.find(image_id), np.arange(base.crops_per_image)
        return base.boxes(row, every), base.flips(row, every)


def check_same_images(source: ImageSource, store: LabelStore) -> None:
    """Raise InputError unless exactly these images, by id, were offered for ``store``."""
    if listing(source.ids) == store.geometry.images.listing:
        return
    before = merge(store.ids, (s.id for s in store.manifest.skipped))
    for old, new in zip_longest(before, source.ids):
        if old != new:
            lacks = new is None or (old is not None and old < new)
            raise InputError(
                f"the images of {source.name} are not those labelled for {store.path}: "
                f"{f'it lacks {old}' if lacks else f'only it has {new}'}; use the images that "
                "were labelled"
            )


def on_boxes_of(settings: manifests.Settings, base: LabelStore) -> manifests.Settings:
    """``settings`` with ``base`` recorded as where the boxes come from.

    Raises InputError when they ask for other crops than ``base`` holds.
    """
    here, there = settings.crops, base.geometry.crops
    if (here.kind, here.digest) != (there.kind, there.digest):
        raise InputError(f"the crops of {base.path} are {there.kind}, not {here.kind}")
    for key in ("count", "distribution", "seed"):
        if getattr(here, key) != getattr(there, key):
            raise InputError(
                f"{key} of the crops is {getattr(here, key)}, but boxes_from {base.path} holds "
                f"crops of {key} {getattr(there, key)}; leave it out to label those crops"
            )
    if settings.images.exif != base.geometry.images.exif:
        raise InputError(
            f"exif is {settings.images.exif}, but {base.path} was labelled with "
            f"{base.geometry.images.exif}; boxes fit images that are turned the same way only"
        )
    source = {
        "teacher": base.settings.teacher.get("spec") if base.has("labels") else None,
        "manifest_sha256": base.identity,
    }
    return settings.model_copy(update={"teacher": {**settings.teacher, "boxes_from": source}})


def extended(settings: manifests.Settings, base: LabelStore) -> manifests.Settings:
    """The settings of ``base`` with more crops; raises InputError unless ``settings`` agree.

    Where another version of the software labels the new crops, both are named.
    """
    if base.geometry.crops.kind != "random":
        raise InputError(
            f"the crops of {base.path} were given by a file, so no more of them can be drawn; give "
            "all of them in a file and label again"
        )
    have, want = base.crops_per_image, settings.crops.count
    if want <= have:
        raise InputError(
            f"crops is {want}, but {base.path} holds {have} per image: give the number wanted in "
            f"all, above {have}"
        )
    old, new = base.settings.flat(), settings.flat()
    free = ("crops.count", "software")
    changed = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
        and key not in free
        and not key.startswith("teacher.boxes_from")
    ]
    if changed:
        raise InputError(
            f"{base.path} was labelled with other settings ({', '.join(changed[:4])}); its crops "
            "can be added to with the same settings only"
        )
    software = settings.software
    if software != base.settings.software:
        software = f"{software}; crops 0 to {have - 1}: {base.settings.software}"
    return base.settings.model_copy(update={"crops": settings.crops, "software": software})
