"""Which crops a loader's images show: fresh random ones, or those of a label store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.calibration.labels import Region, blend
from ferkd.calibration.regions import Mining, Regions, mine
from ferkd.crops import CUT_RULE, CropDistribution, random_boxes
from ferkd.images import DECODER, ImageSource, Picture, fingerprint, spelt_otherwise
from ferkd.loading.order import draw_crops
from ferkd.store import LabelStore, SoftLabels
from ferkd.store.manifest import IMPORTED_RULE, check_kind
from ferkd.store.structure import require_table
from ferkd.store.writer import listing
from ferkd.system.errors import InputError

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

    def check(self, row: int, picture: Picture) -> None:
        """Refuse an image whose file is not the one that was labelled."""

    def boxes(self, chosen: Chosen, sizes: NDArray[np.int64]) -> Placed:
        """Where the crops of the chosen images lie; ``sizes`` [n, 2] are heights and widths."""

    def labels(
        self, chosen: Chosen, placed: Placed, sizes: NDArray[np.int64]
    ) -> tuple[SoftLabels | None, NDArray[np.int8] | None]:
        """The n * m crops' labels and, where they are divided into regions, those [n, m]."""

    def features(self, chosen: Chosen) -> NDArray[np.float32] | None:
        """A teacher's features of the n * m crops, [n * m, d]; None where there are none."""


class Placed(NamedTuple):
    """Boxes int32 [n, m, 4] as (top, left, height, width) and flips bool [n, m]."""

    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """What n images show: rows [n], crop numbers [n, m], targets [n], and the records [n, m] that
    a store holds of the crops."""

    rows: NDArray[np.int64]
    crops: NDArray[np.int64]
    targets: NDArray[np.int64]
    records: NDArray[Any] | None = None

    def __getitem__(self, some: slice) -> Chosen:
        records = None if self.records is None else self.records[some]
        return Chosen(self.rows[some], self.crops[some], self.targets[some], records)


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
        return Chosen(rows, crops, self._images.targets[rows].astype(np.int64))

    def check(self, row: int, picture: Picture) -> None:
        """Nothing is known of the images, so none is refused."""

    def boxes(self, chosen: Chosen, sizes: NDArray[np.int64]) -> Placed:
        boxes, flips = random_boxes(
            sizes[:, 0],
            sizes[:, 1],
            crops=chosen.crops.shape[1],
            seed=self.seed,
            # A stream of its own: with the seed that labels are made with, a teacher would else
            # have been trained on the very crops that it labels, and its confidence be too high.
            ids=["fresh\0" + self._images.ids[int(row)] for row in chosen.rows],
            distribution=self.distribution,
            first=chosen.crops[:, 0],
        )
        return Placed(boxes, flips)

    def labels(
        self, chosen: Chosen, placed: Placed, sizes: NDArray[np.int64]
    ) -> tuple[SoftLabels | None, NDArray[np.int8] | None]:
        return None, None

    def features(self, chosen: Chosen) -> None:
        return None


class LabelledImages:
    """The images of a store, found in an image source; rows are the store's.

    ``kind`` is what its labels must be of: "random" crops, or the "grid" of label maps. ``places``
    int64 [N]: where each image stands in the source. Raises InputError when the store does not
    belong to these images: an id, the class names or the content (of a sample) differ, or the
    crops were cut by another rule. Imported labels, whose rule is not known, are accepted with a
    logged warning.
    """

    def __init__(
        self, images: ImageSource, store: LabelStore, kind: Literal["random", "grid"]
    ) -> None:
        check_kind(store.geometry, kind, store.path)
        self.store = store
        self.places = match(images, store)

    def image(self, row: int) -> tuple[int, str]:
        """The image's place in the image source, and its id."""
        return int(self.places[row]), self.store.ids[row]

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ground-truth classes, int64 [n], -1 for none."""
        return self.store.truth(rows)

    def check(self, row: int, picture: Picture) -> None:
        """Refuse an image whose file is not the one that was labelled."""
        if picture.fingerprint != int(self.store.images["fingerprint"][row]):
            raise InputError(_changed(self.store.ids[row], self.store))

    def check_sizes(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """Refuse images of other heights and widths, ``sizes`` [n, 2], than were labelled."""
        images = self.store.images
        labelled = np.stack([images["height"][rows], images["width"][rows]], 1)
        for i in np.flatnonzero((sizes != labelled).any(1)):
            raise InputError(
                f"{self.store.ids[int(rows[i])]} is {sizes[i, 0]}x{sizes[i, 1]} pixels, but was "
                f"labelled at {labelled[i, 0]}x{labelled[i, 1]}; use the images that were labelled"
            )


class StoredCrops:
    """The crops of a label store, calibrated by regions; discarded crops are never drawn.

    ``features`` gives batches the stored features of the crops; a store may then hold no labels.
    Without ``labels`` batches have none, though regions may be those of the store's.

    ``temperature`` is that of the stored labels, before they are calibrated: regions and
    reliabilities stay those of the labels as stored. ``truth_share`` of every label is then the
    ground truth, where an image has one.

    Raises InputError for a store of label maps, and as :class:`LabelledImages` does.
    """

    replaceable = False

    def __init__(
        self,
        images: ImageSource,
        store: LabelStore,
        *,
        regions: Regions | None = None,
        seed: int = 0,
        features: bool = False,
        labels: bool = True,
        temperature: float = 1.0,
        truth_share: float = 0.0,
    ) -> None:
        self.store, self.seed = store, seed
        self._features = store.of_kind("features").name if features else None
        self._labels = labels and (store.has("labels") or not features)
        self.temperature, self.truth_share = temperature, truth_share
        self._labelled = LabelledImages(images, store, "random")
        self.mining: Mining | None = mine(store, regions) if regions else None

    def __len__(self) -> int:
        return len(self.store)

    def image(self, row: int) -> tuple[int, str]:
        return self._labelled.image(row)

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        store = self.store
        ids = store.ids.at(rows)
        if self.mining is None:
            usable = np.ones((len(rows), store.crops_per_image), bool)
        else:
            usable = self.mining.regions[rows] != Region.DISCARDED
        crops = draw_crops(usable, ids, visits, m, self.seed)
        targets = self._labelled.targets(rows)
        records = store.records(rows[:, None], crops) if self._labels else None
        return Chosen(rows, crops, targets, records)

    def check(self, row: int, picture: Picture) -> None:
        self._labelled.check(row, picture)

    def boxes(self, chosen: Chosen, sizes: NDArray[np.int64]) -> Placed:
        self._labelled.check_sizes(chosen.rows, sizes)
        where = chosen.rows[:, None], chosen.crops
        return Placed(self.store.boxes(*where), self.store.flips(*where))

    def labels(
        self, chosen: Chosen, placed: Placed, sizes: NDArray[np.int64]
    ) -> tuple[SoftLabels | None, NDArray[np.int8] | None]:
        if chosen.records is None:
            return None, None
        m = chosen.crops.shape[1]
        labels = self.store.decode(chosen.records.reshape(-1), np.repeat(chosen.rows, m))
        labels = labels.tempered(self.temperature)
        targets = torch.from_numpy(np.repeat(chosen.targets, m))
        regions = None
        if self.mining is not None:
            labels = self.mining.calibrate(labels, targets, chosen.rows, chosen.crops)
            regions = self.mining.regions[chosen.rows[:, None], chosen.crops]
        if self.truth_share > 0:
            stored = torch.full((len(labels),), 1 - self.truth_share)
            labels = blend(labels, targets, stored, 0.0)
        return labels, regions

    def features(self, chosen: Chosen) -> NDArray[np.float32] | None:
        if self._features is None:
            return None
        found = self.store.features(chosen.rows[:, None], chosen.crops)
        return found.reshape(-1, found.shape[-1])


def without_labels(images: ImageSource, store: LabelStore) -> int:
    """How many of ``images`` the store knows nothing of: added since, not left out then."""
    if len(images) <= len(store):
        return 0
    known = {*store.ids, *(skip.id for skip in store.manifest.skipped)}
    return sum(image_id not in known for image_id in images.ids)


def match(images: ImageSource, store: LabelStore) -> NDArray[np.int64]:
    """The place in ``images`` of each image of ``store``, int64 [N]; raises InputError.

    Images without labels, added since the labelling, are counted in one line of the log.
    """
    require_table(store)
    rule = store.geometry.crops.rule
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
    elif store.geometry.images.decoder != DECODER:
        logger.warning(
            "%s was made with the decoder %s, here it is %s: pixels may differ a little",
            store.path,
            store.geometry.images.decoder,
            DECODER,
        )
    if images.class_names and store.settings.targets and images.class_names != store.class_names:
        raise InputError(
            f"the classes of {images.name} ({_some(images.class_names)}) are not those of the "
            f"labels {store.path} ({_some(store.class_names)}); use the images that were labelled"
            + spelt_otherwise(store.class_names, images.class_names)
        )
    places = {image_id: place for place, image_id in enumerate(images.ids)}
    sources = np.array([places.get(image_id, -1) for image_id in store.ids], np.int64)
    missing = np.flatnonzero(sources < 0)
    if len(missing):
        raise InputError(
            f"{len(missing)} of the {len(store)} images of the labels {store.path} are not in "
            f"{images.name} (first: {store.ids[int(missing[0])]}); the labels belong to another "
            "image set: use the images that were labelled, or label these"
            + spelt_otherwise([store.ids[int(missing[0])]], images.ids)
        )
    unfinished = store.geometry.images.listing == listing(images.ids)  # all of these were offered
    if not unfinished and (added := without_labels(images, store)):
        logger.warning(
            "%d of the %d images of %s have no labels in %s and are left out: they were added "
            "since; label the folder again to use them",
            added,
            len(images),
            images.name,
            store.path,
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
