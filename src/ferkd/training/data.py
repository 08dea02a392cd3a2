"""From a recipe to the batches that a run trains on, mixing included."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ferkd.calibration.regions import Mining
from ferkd.calibration.temperature import FittedTemperature, fit_temperature
from ferkd.images import ImageSource, PixelCache, open_images
from ferkd.images.content import content
from ferkd.loading.crop_sources import CropSource, FreshCrops, StoredCrops, without_labels
from ferkd.loading.loader import Loader
from ferkd.loading.order import ImageOrder
from ferkd.methods import METHODS
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

logger = logging.getLogger("ferkd")

if TYPE_CHECKING:
    from ferkd.loading.growing import GrowingLoader
    from ferkd.models.teacher import Teacher
    from ferkd.training.recipe import Data, Recipe


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on. ``unlabelled``: the images without ground truth; ``store`` holds the
    labels or label maps, ``teacher`` is the live one, where the method has them."""

    loader: Loader
    class_names: tuple[str, ...]
    num_classes: int
    mining: Mining | None
    identity: str  # changes with the images, their classes, the labels and the teacher
    exif: bool = True  # whether images are turned by their EXIF orientation
    unlabelled: int = 0
    store: LabelStore | None = None
    teacher: Teacher | None = None
    temperature: FittedTemperature | None = None  # of the labels, where it was fitted
    images_without_labels: int = 0  # in the folder, but unknown to the store: not trained on
    growing: GrowingLoader | None = None  # the loader, where the store is still being written


def open_data(recipe: Recipe) -> TrainingData:
    """The batches of a recipe and what they are made of, the store being finished. Raises
    InputError."""
    found = _from_images(recipe) if METHODS[recipe.method].labels == "none" else stored(recipe)
    if recipe.loss.has_classes and found.num_classes < 2:
        raise InputError(
            f"{found.images.name} has {found.num_classes} class; a classifier needs at least 2 "
            "class folders"
            + ("; without classes set loss.beside none" if METHODS[recipe.method].features else "")
        )
    loader = loader_of(recipe, found, cache_of(recipe.data, found))
    return TrainingData(
        loader,
        found.class_names,
        found.num_classes,
        found.mining,
        _identity(found),
        found.exif,
        int((found.targets < 0).sum()),
        found.store,
        found.teacher,
        found.temperature,
        0 if found.store is None else without_labels(found.images, found.store),
    )


def loader_of(
    recipe: Recipe,
    found: Found,
    cache: PixelCache | None,
    *,
    order: ImageOrder | None = None,
    images: int | None = None,
) -> Loader:
    """The loader of a recipe over what was found; ``images`` is the number that epochs count."""
    wanted = recipe.data
    return Loader(
        found.images,
        found.crops,
        batch_size=wanted.batch_size,
        crops_per_image=wanted.crops_per_image,
        image_size=wanted.image_size,
        seed=recipe.seed,
        workers=wanted.workers,
        worker_kind=wanted.worker_kind,
        exif=found.exif,
        size_at=recipe.schedule.sizes(
            images or len(found.crops), _crops(wanted), wanted.image_size
        ),
        scaled_decoding=wanted.scaled_decoding,
        cache=cache,
        order=order,
        cut_on="device" if wanted.cut == "device" else "workers",
    )


@dataclass(frozen=True)
class Found:
    """Images and the crops that they show; ``labels`` names what labels them, "" for nothing."""

    images: ImageSource
    crops: CropSource
    class_names: tuple[str, ...]
    num_classes: int
    targets: np.ndarray
    labels: str = ""
    exif: bool = True
    mining: Mining | None = None
    store: LabelStore | None = None
    teacher: Teacher | None = None
    temperature: FittedTemperature | None = None


def _from_images(recipe: Recipe) -> Found:
    """Fresh crops of images with their ground truth, and the live teacher of the method."""
    method, wanted = METHODS[recipe.method], recipe.data
    images = open_images(wanted.images, targets=recipe.loss.has_classes)
    names, targets = images.class_names, images.targets
    if method.truth and len(targets) and int(targets.min()) < 0:
        raise InputError(
            f"{images.name} has images without ground truth, which method {recipe.method} trains "
            "on; use class folders, or method fkd with a label store"
        )
    teacher = _live_teacher(recipe, images) if method.teacher else None
    return Found(
        images,
        FreshCrops(images, distribution=wanted.crops, seed=recipe.seed),
        names,
        len(names),
        targets,
        labels=_answers_of(teacher) if teacher else "",
        teacher=teacher,
    )


def _live_teacher(recipe: Recipe, images: ImageSource) -> Teacher:
    # Not at the top: they import timm, which takes seconds that reading a recipe should not cost.
    from ferkd.labelling.agreement import probe
    from ferkd.models.teacher import load_teacher

    spec = recipe.teacher or ""
    check_live(spec, recipe)
    teacher = load_teacher(
        spec,
        image_size=recipe.data.image_size,
        device=recipe.device,
        precision=recipe.teacher_precision or recipe.precision,
    )
    if METHODS[recipe.method].features:  # whatever its classes are
        _check_sides(teacher, recipe)
        return teacher
    teacher = teacher.for_folders(images.class_names, recipe.class_map)
    _check_sides(teacher, recipe)
    if found := probe(teacher, images):
        found.warn()
    return teacher


def _answers_of(teacher: Teacher) -> str:
    """What a live teacher answers, in a line: its weights, and of its classes the folders'."""
    taken = () if teacher.matching is None else teacher.matching.columns
    return " ".join([teacher.fingerprint, *map(str, taken)])


def check_live(spec: str, recipe: Recipe) -> None:
    """Raise InputError for the spec of a live teacher that is not there or cannot be meant,
    building nothing."""
    from ferkd.models.committee import split_spec
    from ferkd.models.specs import check_exists, parse_spec

    if len(split_spec(spec)) > 1:
        raise InputError(
            f"teacher {spec!r} names several teachers, of which method {recipe.method} takes one; "
            "label by ferkd label with them and use method meal_v2"
        )
    target, options = parse_spec(spec)
    check_exists(target, options)
    stated, side = options.image_size, recipe.data.image_size
    if stated is not None and stated != side:
        raise InputError(
            f"teacher {spec!r} states image_size={stated}, but method {recipe.method} shows it "
            f"what the student sees, at data.image_size {side}; leave image_size out of the spec, "
            "or store labels at the teacher's own size by ferkd label and use method fkd"
        )


def _check_sides(teacher: Teacher, recipe: Recipe) -> None:
    """Refuse a teacher that does not take every size that the student is shown."""
    for _, side in recipe.schedule.image_size or ():
        try:
            teacher.logits(torch.zeros(1, 3, side, side, device=teacher.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"teacher {teacher.spec} does not take images of {side} pixels ({cause}), which "
                "schedule.image_size shows; leave that size out, or use a convolutional teacher"
            ) from error


def open_store(recipe: Recipe) -> LabelStore:
    """The store of a recipe whose method trains from one: of crops, or of maps; of its signals
    those that the method reads. Raises InputError where it cannot be opened and where it is of the
    other kind."""
    method, wanted = METHODS[recipe.method], recipe.data
    if wanted.store is None:
        raise InputError(f"recipe.data.store: missing; method {recipe.method} needs labels")
    store = LabelStore(wanted.store)
    if not recipe.loss.reads_labels:
        store = store.of_kinds("features")
    is_map = store.geometry.crops.is_map
    if is_map != (method.labels == "map"):
        held, needed, remedy = ("label maps", "the labels of crops", "without --kind map")
        if not is_map:
            held, needed, remedy = needed, held, "--kind map"
        raise InputError(
            f"{store.path} holds {held}, but method {recipe.method} needs {needed}; label by "
            f"ferkd label {remedy}"
            + (", or use method relabel" if is_map else ", or use method fkd")
        )
    if method.features:
        store.of_kind("features")  # raises where there are none, and where several may be meant
    if recipe.loss.reads_labels:
        store.of_kind("labels")
    return store


def stored(
    recipe: Recipe, store: LabelStore | None = None, images: ImageSource | None = None
) -> Found:
    """The crops of a label store, or fresh crops of images with label maps; ``store`` and
    ``images`` are the recipe's unless given."""
    method, wanted, store = METHODS[recipe.method], recipe.data, store or open_store(recipe)
    is_map = store.geometry.crops.is_map
    images = images or open_images(wanted.images, targets=store.settings.targets)
    crops: CropSource
    mining = fitted = None
    if is_map:
        from ferkd.loading.map_crops import MapCrops

        crops = MapCrops(images, store, distribution=wanted.crops, seed=recipe.seed)
    else:
        regions = recipe.regions if method.regions or recipe.loss.mined else None
        temperature, fitted = _label_temperature(recipe, store)
        crops = stored = StoredCrops(
            images,
            store,
            regions=regions,
            seed=recipe.seed,
            features=method.features,
            labels=recipe.loss.learns_labels,
            temperature=temperature,
            truth_share=getattr(recipe.loss, "truth_share", 0.0),
        )
        mining = stored.mining
    classes = recipe.loss.has_classes
    return Found(
        images,
        crops,
        store.class_names if classes else (),
        store.num_classes if classes else 0,
        store.targets,
        labels=store.identity,
        exif=store.geometry.images.exif,
        mining=mining,
        store=store,
        temperature=fitted,
    )


def _label_temperature(recipe: Recipe, store: LabelStore) -> tuple[float, FittedTemperature | None]:
    """The temperature of the stored labels that the loss asks for, and how it was fitted."""
    wanted = getattr(recipe.loss, "label_temperature", 1.0)
    fitted = None
    if not recipe.loss.learns_labels:
        return 1.0, None
    if wanted == "fit":
        fitted = fit_temperature(store)
        if fitted is None:
            raise InputError(
                f"loss.label_temperature fit needs ground truth, and labels that tell their tail, "
                f"which {store.path} does not hold; set a number"
            )
        wanted = fitted.value
        logger.info(
            "labels are taken at temperature %.3f [%.3f, %.3f], where they are likeliest for the "
            "ground truth",
            *(wanted, fitted.low, fitted.high),
        )
    labels = store.labels([0], [0])
    try:
        labels.tempered(wanted)
    except InputError as error:
        raise InputError(f"loss.label_temperature of {store.path}: {error}") from None
    return wanted, fitted


def _crops(wanted: Data) -> int:
    """The crops of a batch: whole images, so no fewer than asked for."""
    return -(-wanted.batch_size // wanted.crops_per_image) * wanted.crops_per_image


def cache_of(wanted: Data, found: Found) -> PixelCache | None:
    if wanted.cache == "none":
        return None
    sizes = None
    if found.store is not None:  # it knows the sizes; images that it left out are never read
        sizes = np.zeros((len(found.images), 2), np.int64)
        table = found.store.images
        places = [found.crops.image(row)[0] for row in range(len(found.crops))]
        sizes[places] = np.stack([table["height"], table["width"]], 1)
    if wanted.cache_side is not None and found.store is not None:
        logger.warning(
            "images are kept at a shorter side of %d pixels at most: the student sees crops of "
            "these, the teacher saw crops of the whole images",
            wanted.cache_side,
        )
    limit = wanted.cache_limit_gb
    return PixelCache(
        found.images,
        wanted.cache,
        exif=found.exif,
        max_side=wanted.cache_side,
        limit=None if limit is None else round(limit * 1e9),
        folder=wanted.cache_dir,
        sizes=sizes,
    )


def _identity(found: Found) -> str:
    """What the data are, in one number. Labels name their images by content already; without a
    store the images are read for it (see ferkd.images.content)."""
    held = content(found.images) if found.store is None else ""
    digest = hashlib.sha256("\0".join([*found.images.ids, found.labels, held]).encode())
    digest.update(np.ascontiguousarray(found.targets, dtype="<i4").tobytes())
    return digest.hexdigest()
