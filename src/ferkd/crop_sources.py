"""Which crops a loader's images show: fresh random ones, or those of a label store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.crops import CUT_RULE, CropDistribution, random_boxes
from ferkd.errors import InputError
from ferkd.images import DECODER, ImageSource, fingerprint
from ferkd.labels import LabelStore, SoftLabels
from ferkd.labels.manifest import IMPORTED_RULE
from ferkd.regions import Mining, Region, Regions, calibrate, mine
from ferkd.schedule import draw_crops

logger = logging.getLogger("ferkd")

_CHECKED = 16  # images whose content is compared with the store's fingerprints on opening


class CropSource(Protocol):
    """Which crops images show, and what is known about them.

    ``replaceable``: whether another image may stand in for one that cannot be read.
    """

    replaceable: bool

    def __len__(self) -> int:
        """The number of images."""

    def image(self, row: int) -> tuple[int, str]:
        """The image's place in the image source, and its id."""

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        """What the images ``rows`` show at their visits."""

    def check(self, row: int, data: bytes) -> None:
        """Refuse the bytes of an image that are not those that were labelled."""

    def boxes(
        self, chosen: Chosen, i: int, image_id: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Boxes [m, 4] and flips [m] of the i-th chosen image, decoded to (height, width)."""


@dataclass(frozen=True)
class Chosen:
    """Crop numbers [n, m] and targets [n]; for stored crops also what their store says of them:
    boxes [n, m, 4], flips [n, m], image sizes [n, 2], n * m labels and regions [n, m]."""

    crops: NDArray[np.int64]
    targets: NDArray[np.int64]
    boxes: NDArray[np.int32] | None = None
    flips: NDArray[np.bool_] | None = None
    sizes: NDArray[np.int64] | None = None
    labels: SoftLabels | None = None
    regions: NDArray[np.int8] | None = None


class FreshCrops:
    """New random resized crops at every visit: ordinary training, without stored labels."""

    replaceable = True

    def __init__(
        self,
        images: ImageSource,
        *,
        distribution: CropDistribution | None = None,
        seed: int = 0,
    ) -> None:
        self._images = images
        self.distribution = distribution or CropDistribution()
        self.seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def image(self, row: int) -> tuple[int, str]:
        return row, self._images.ids[row]

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        crops = visits[:, None] * m + np.arange(m)
        return Chosen(crops, self._images.targets[rows].astype(np.int64))

    def check(self, row: int, data: bytes) -> None:
        """Nothing is known of the images, so none is refused."""

    def boxes(
        self, chosen: Chosen, i: int, image_id: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        boxes, flips = random_boxes(
            shape[:1],
            shape[1:],
            crops=chosen.crops.shape[1],
            seed=self.seed,
            # A stream of its own: with the seed that labels are made with, a teacher would else
            # have been trained on the very crops that it labels, and its confidence be too high.
            ids=["fresh\0" + image_id],
            distribution=self.distribution,
            first=int(chosen.crops[i, 0]),
        )
        return boxes[0], flips[0]


class StoredCrops:
    """The crops of a label store, calibrated by regions; discarded crops are never drawn.

    Raises InputError when the store does not belong to these images: an id, the class names or
    the content (of a sample) differ, or the crops were cut by another rule. Imported labels, whose
    rule is not known, are accepted with a logged warning.
    """

    replaceable = False

    def __init__(
        self,
        images: ImageSource,
        store: LabelStore,
        *,
        regions: Regions | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.seed = store, seed
        self._sources = match(images, store)
        self.mining: Mining | None = mine(store, regions) if regions else None
        self._epsilon = regions.epsilon if regions else 0.0

    def __len__(self) -> int:
        return len(self.store)

    def image(self, row: int) -> tuple[int, str]:
        return int(self._sources[row]), self.store.ids[row]

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        store = self.store
        ids = [store.ids[int(row)] for row in rows]
        if self.mining is None:
            usable = np.ones((len(rows), store.crops_per_image), bool)
        else:
            usable = self.mining.regions[rows] != Region.DISCARDED
        crops = draw_crops(usable, ids, visits, m, self.seed)
        records = store.records(rows[:, None], crops)
        labels = store.decode(records.reshape(-1), np.repeat(rows, m))
        targets = store.images["target"][rows].astype(np.int64)
        regions = None
        if self.mining is not None:
            regions = self.mining.regions[rows[:, None], crops]
            labels = calibrate(
                labels,
                torch.from_numpy(np.repeat(targets, m)),
                torch.from_numpy(regions.reshape(-1)),
                self._epsilon,
            )
        sizes = np.stack([store.images["height"][rows], store.images["width"][rows]], 1)
        return Chosen(
            crops,
            targets,
            records["box"].astype(np.int32),
            store.record.flips(records),
            sizes.astype(np.int64),
            labels,
            regions,
        )

    def check(self, row: int, data: bytes) -> None:
        if fingerprint(data) != int(self.store.images["fingerprint"][row]):
            raise InputError(_changed(self.store.ids[row], self.store))

    def boxes(
        self, chosen: Chosen, i: int, image_id: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        assert chosen.boxes is not None and chosen.flips is not None and chosen.sizes is not None
        if shape != tuple(chosen.sizes[i]):
            raise InputError(
                f"{image_id} is {shape[0]}x{shape[1]} pixels, but was labelled at "
                f"{chosen.sizes[i][0]}x{chosen.sizes[i][1]}; use the images that were labelled"
            )
        return chosen.boxes[i], chosen.flips[i]


def match(images: ImageSource, store: LabelStore) -> NDArray[np.int64]:
    """The place in ``images`` of each image of ``store``, int64 [N]; raises InputError."""
    rule = store.settings.crops.rule
    if rule.startswith(IMPORTED_RULE):
        logger.warning(
            "%s holds imported labels: the student's crops have the teacher's boxes but are "
            "resized by another rule than the teacher's were (%s; here %s)",
            store.path,
            rule.removeprefix(IMPORTED_RULE),
            CUT_RULE,
        )
    elif rule != CUT_RULE:
        raise InputError(
            f"the labels of {store.path} were made with the crop rule {rule!r}, this release cuts "
            f"by {CUT_RULE!r}; label again, or use the release that made them"
        )
    elif store.settings.images.decoder != DECODER:
        logger.warning(
            "%s was made with the decoder %s, here it is %s: pixels may differ a little",
            store.path,
            store.settings.images.decoder,
            DECODER,
        )
    if images.class_names and store.settings.targets and images.class_names != store.class_names:
        raise InputError(
            f"the classes of {images.name} ({_some(images.class_names)}) are not those of the "
            f"labels {store.path} ({_some(store.class_names)}); use the images that were labelled"
        )
    places = {image_id: place for place, image_id in enumerate(images.ids)}
    sources = np.array([places.get(image_id, -1) for image_id in store.ids], np.int64)
    missing = np.flatnonzero(sources < 0)
    if len(missing):
        raise InputError(
            f"{len(missing)} of the {len(store)} images of the labels {store.path} are not in "
            f"{images.name} (first: {store.ids[int(missing[0])]}); the labels belong to another "
            "image set: use the images that were labelled, or label these"
        )
    for row in np.unique(np.linspace(0, len(store) - 1, min(_CHECKED, len(store))).astype(int)):
        if fingerprint(images.read(int(sources[row]))) != int(store.images["fingerprint"][row]):
            raise InputError(_changed(f"{store.ids[int(row)]} in {images.name}", store))
    return sources


def _changed(image: str, store: LabelStore) -> str:
    return (
        f"{image} is not the file that was labelled for {store.path} (its content differs); use "
        "the labelled images, or label these"
    )


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
