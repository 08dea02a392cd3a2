"""From a recipe to the batches that a run trains on, mixing included."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ferkd.crop_sources import FreshCrops, StoredCrops
from ferkd.errors import InputError
from ferkd.images import open_images
from ferkd.labels import LabelStore, SoftLabels
from ferkd.labels.manifest import checksum
from ferkd.loader import Loader
from ferkd.mixing import Mix
from ferkd.regions import Mining
from ferkd.training.trainer import Mixer

if TYPE_CHECKING:
    from ferkd.config import Recipe


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on."""

    loader: Loader
    class_names: tuple[str, ...]
    num_classes: int
    mining: Mining | None
    identity: str  # changes with the images and their classes


def open_data(recipe: Recipe) -> TrainingData:
    """The batches of a recipe and what they are made of. Raises InputError."""
    wanted = recipe.data
    distribution = wanted.crops
    crops: FreshCrops | StoredCrops
    mining = None
    exif = True
    labels = ""
    if recipe.method == "hard":
        images = open_images(wanted.images)
        crops = FreshCrops(images, distribution=distribution, seed=recipe.seed)
        classes, targets = len(images.class_names), images.targets
        if len(targets) and int(targets.min()) < 0:
            raise InputError(
                f"{images.name} has images without ground truth, which method hard trains on; "
                "use class folders, or method fkd with a label store"
            )
        names = images.class_names
    else:
        if wanted.store is None:
            raise InputError(f"recipe.data.store: missing; method {recipe.method} needs labels")
        store = LabelStore.open(wanted.store)
        images = open_images(wanted.images, targets=store.settings.targets)
        regions = recipe.regions if recipe.method == "ferkd" else None
        crops = StoredCrops(images, store, regions=regions, seed=recipe.seed)
        mining = crops.mining
        labels = checksum(store.manifest)
        classes, names, targets = store.num_classes, store.class_names, store.targets
        exif = store.settings.images.exif
    if classes < 2:
        raise InputError(
            f"{images.name} has {classes} class; a classifier needs at least 2 class folders"
        )
    loader = Loader(
        images,
        crops,
        batch_size=wanted.batch_size,
        crops_per_image=wanted.crops_per_image,
        image_size=wanted.image_size,
        seed=recipe.seed,
        workers=wanted.workers,
        exif=exif,
    )
    return TrainingData(loader, names, classes, mining, _identity(images.ids, targets, labels))


def _identity(ids: Sequence[str], targets: np.ndarray, labels: str) -> str:
    digest = hashlib.sha256("\0".join([*ids, labels]).encode())
    digest.update(np.ascontiguousarray(targets, dtype="<i4").tobytes())
    return digest.hexdigest()


def mixer(
    mix: Mix, *, crops_per_image: int, seed: int, num_classes: int, label_smoothing: float
) -> Mixer | None:
    """The mixing of a run, by step; None without any.

    Where a batch has no labels, its smoothed hard targets are mixed: torch's cross-entropy gives
    each class smoothing / C, so the softened hard label's epsilon is smoothing (C - 1) / C.
    """
    if mix.kind == "none":
        return None
    epsilon = label_smoothing * (num_classes - 1) / num_classes

    def apply(
        step: int, images: Tensor, labels: SoftLabels | None, targets: Tensor
    ) -> tuple[Tensor, SoftLabels]:
        if labels is None:
            labels = SoftLabels.hard(targets, num_classes, epsilon)
        generator = np.random.default_rng([seed, step])
        return mix(images, labels, crops_per_image=crops_per_image, generator=generator)

    return apply
