"""The data of a run that learns from a store which is still being written (data.partial)."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ferkd.images import ImageSource, PixelCache, open_images
from ferkd.loading.growing import NOTHING, GrowingLoader
from ferkd.loading.loader import Loader
from ferkd.loading.order import ImageOrder
from ferkd.methods import METHODS
from ferkd.store import LabelStore
from ferkd.store.manifest import check_kind
from ferkd.store.partial import Growing
from ferkd.system.errors import InputError
from ferkd.training.data import Found, TrainingData, cache_of, loader_of, stored

if TYPE_CHECKING:
    from ferkd.training.recipe import Recipe

logger = logging.getLogger("ferkd")


def open_partial(recipe: Recipe) -> TrainingData:
    """The batches of a recipe with data.partial, and what they are made of. Raises InputError."""
    wanted, method = recipe.data, METHODS[recipe.method]
    if wanted.store is None or method.labels != "crops":
        raise InputError(
            f"data.partial is for stored labels of crops, which method {recipe.method} does not "
            "train on or data.store does not name; leave it out"
        )
    if method.features:
        raise InputError(
            f"method {recipe.method} takes the mean of all stored features, which a store that is "
            "still being written does not have; leave data.partial out, and train once it is done"
        )
    listed = open_images(wanted.images, targets=False)
    growing = Growing(wanted.store, listed.ids)
    check_kind(growing.settings, "random", growing.path)
    images = open_images(wanted.images, targets=growing.settings.targets)
    seen = _Snapshots(recipe, growing, images)
    ahead = -(-wanted.batch_size // wanted.crops_per_image)
    loader = GrowingLoader(growing.done, seen.loader, images=len(images), images_per_batch=ahead)
    found = seen.found
    assert found is not None
    if found.num_classes < 2:
        raise InputError(f"{images.name} has {found.num_classes} class; at least 2 are needed")
    logger.info(
        "%s has %d of its %d parts; what is labelled later is seen from the next pass on",
        *(growing.path, len(loader.stretches[0].parts), growing.parts),
    )
    targets = images.targets if growing.settings.targets else np.zeros(0, np.int64)
    return TrainingData(
        loader,  # type: ignore[arg-type]  # stands for one
        found.class_names,
        found.num_classes,
        None,  # of each stretch its own
        _identity(images, growing),
        found.exif,
        int((targets < 0).sum()) if growing.settings.targets else len(images),
        growing=loader,
    )


def _identity(images: ImageSource, growing: Growing) -> str:
    """What the data are, however far the store is: its settings and the images offered to it."""
    settings = json.dumps(growing.settings.flat(), sort_keys=True)
    digest = hashlib.sha256("\0".join(["partial", *images.ids, settings]).encode())
    if growing.settings.targets:
        digest.update(np.ascontiguousarray(images.targets, dtype="<i4").tobytes())
    return digest.hexdigest()


class _Snapshots:
    """Stores of the parts that a run has seen, in a temporary folder of their own.

    What is calibrated or fitted is so anew for each: thresholds, the temperature of the labels.
    """

    def __init__(self, recipe: Recipe, growing: Growing, images: ImageSource) -> None:
        self._recipe, self._growing, self._images = recipe, growing, images
        self._folder: Callable[[], object] | None = None  # removes the one in use
        self._cache: PixelCache | None = None
        self.found: Found | None = None

    def loader(self, parts: tuple[int, ...], first: int, visit: int) -> Loader:
        """A loader of the images of these parts, whose order begins there."""
        store = self._store(parts)
        if not len(store):
            raise InputError(NOTHING)
        found = stored(self._recipe, store, self._images)
        if self.found is None:
            self._cache = cache_of(self._recipe.data, replace(found, store=None))
        self.found = found
        order = ImageOrder(len(store), self._recipe.seed, first=first, visit=visit)
        return loader_of(self._recipe, found, self._cache, order=order, images=self._growing.images)

    def _store(self, parts: tuple[int, ...]) -> LabelStore:
        if len(parts) == self._growing.parts and self._growing.finished:
            return self._growing.store()
        former, folder = self._folder, tempfile.mkdtemp(prefix="ferkd-partial-")
        self._folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        store = self._growing.snapshot(parts, Path(folder) / "labels")
        store.map_all()
        if former is not None:
            former()  # what is mapped of it stays until it is let go
        return store
