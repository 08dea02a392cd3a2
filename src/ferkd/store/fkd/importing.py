"""Import of the label files of FKD's authors into a label store.

One file, ``SPLIT/CLASS/NAME.tar``, holds the crops of one image; see docs/import-fkd.md. How a file
is read without executing what is pickled in it: :mod:`ferkd.store.fkd.files`; what its numbers
mean: :mod:`ferkd.store.fkd.convert`; the way back: :mod:`ferkd.store.fkd.export`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd import __version__
from ferkd.crops import CropDistribution
from ferkd.images import (
    DECODER,
    ImageSource,
    UnreadableImage,
    decode,
    fingerprint,
    open_images,
    refuse_inside_images,
)
from ferkd.store import manifest as manifests
from ferkd.store.fkd.convert import (
    EXACT_HALF_CLASSES,
    EXACT_HALF_SIDE,
    KINDS,
    Kind,
    boxes_of,
    kind_of,
    labels_of,
    uncertain,
)
from ferkd.store.fkd.files import DamagedLabels, LabelFile, read_label_file
from ferkd.store.fkd.match import label_files, match_labels
from ferkd.store.reader import IMAGE, LabelStore
from ferkd.store.records import MAX_SIDE, RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError
from ferkd.system.settings import check_least, check_share
from ferkd.system.storage import local_path
from ferkd.system.text import name as visible

RULE = (
    f"{manifests.IMPORTED_RULE}FKD's boxes; how they were drawn, and how and to which size "
    "torchvision resized the crops, is not known"
)
RESIZED_RULE = f"{RULE}; the images may have had another size then, so boxes are rounded"

_PART_IMAGES, _PART_BYTES = 256, 1 << 26  # images to a part, fewer where records are large
_PROBED = 100  # files read at most to find one that tells the kind
_SAMPLED = 256  # images whose labels are compared with the ground truth for the report

Progress = Callable[[int, int], None]  # images done, of all


@dataclass(frozen=True)
class ImportReport:
    """What an import found. Files are named by their path in the directory, images by their id.

    ``matched`` images have a label file; those left out all the same are in
    ``store.manifest.skipped``. ``ambiguous`` label files belong to several images and were not
    used. ``uncertain_boxes`` is the number of crops whose half precision coordinates stand for
    more than one box of whole pixels. ``teacher_right`` is the share of crops, in a sample, whose
    most probable class is the ground truth; None without ground truth.
    """

    store: LabelStore
    kind: Kind
    matched: int
    unmatched_labels: tuple[str, ...]
    unmatched_images: tuple[str, ...]
    ambiguous: tuple[str, ...]
    uncertain_boxes: int
    teacher_right: float | None

    @property
    def warnings(self) -> list[str]:
        """What a user should know of this import, a line each."""
        listed = (
            (self.unmatched_labels, "label files without an image"),
            (self.unmatched_images, "images without a label file"),
            (self.ambiguous, "label files that fit several images, not used"),
            ([f"{s.id}: {s.reason}" for s in self.store.manifest.skipped], "images left out"),
        )
        lines = [f"{len(names)} {what} (first: {names[0]})" for names, what in listed if names]
        if self.uncertain_boxes:
            lines.append(
                f"{self.uncertain_boxes} boxes may be off by a pixel or more: half precision "
                f"coordinates are exact only in images of up to {EXACT_HALF_SIDE} pixels a side"
            )
        chance = max(0.1, 1 / self.store.num_classes)
        if self.teacher_right is not None and self.teacher_right < chance:
            lines.append(
                f"only {self.teacher_right:.1%} of the crops are given their image's class: the "
                "sorted class folders may not be in the order of the teacher's classes"
            )
        return lines


def import_fkd(
    directory: str | Path,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    num_classes: int | None = None,
    kind: str = "auto",
    crops: int | None = None,
    values: str = "auto",
    targets: bool = True,
    resized: bool = False,
    workers: int = 2,
    max_skipped: float = 0.01,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Turn FKD's label files under ``directory`` into a label store at ``out``.

    ``images`` are those that were labelled. Their sorted class folders are the labels' classes;
    with ``targets=False`` they are not, and ``num_classes`` says how many there are. ``kind`` is
    one of KINDS. All files must hold the same number of crops, unless ``crops`` takes the first so
    many. ``resized=True`` accepts images of another size than at labelling, where boxes fall
    between pixels and are rounded; without it such an image is left out. ``workers`` threads read
    and decode. Images and labels that cannot be used are listed in the store and left out, unless
    they are more than the share ``max_skipped``.

    Nothing pickled is executed: a file that asks for it ends the import. Raises InputError; a
    killed import is continued with ``resume``.
    """
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    check_least(1, workers=workers, crops=1 if crops is None else crops)
    check_share("max_skipped", max_skipped)
    source = open_images(images, targets=targets)
    refuse_inside_images(out, source)
    if targets:
        num_classes = _class_count(num_classes, source)
    root = local_path(directory)
    match = match_labels(label_files(root), source)
    layout = _probe(root, [path for _, path in match.pairs], kind, num_classes, crops)
    record = RecordFormat.choose(layout.k, layout.num_classes, values, tail="mass")
    ids = [source.ids[place] for place, _ in match.pairs]
    images_a_part = _PART_BYTES // (layout.crops * record.dtype.itemsize)
    settings = manifests.Settings(
        record=manifests.Record(**vars(record)),
        crops=manifests.Crops(
            count=layout.crops,
            distribution=CropDistribution(),
            seed=0,
            rule=RESIZED_RULE if resized else RULE,
        ),
        # The authors' loader ignores the EXIF orientation.
        images=manifests.Images(decoder=DECODER, exif=False, listing=listing(ids)),
        teacher={"spec": "imported from FKD", "normalisation": "unknown", **layout._asdict()},
        class_names=source.class_names if targets else (),
        targets=targets,
        part_images=max(1, min(_PART_IMAGES, images_a_part)),
        software=f"ferkd {__version__}, torch {torch.__version__}",
    )
    convert = _Converter(root, source, layout, record, crops, resized)
    with (
        StoreWriter(out, settings, len(ids), resume=resume, overwrite=overwrite) as writer,
        ThreadPoolExecutor(workers) as pool,
    ):
        skipped = writer.skipped()
        for number in writer.missing():
            places = writer.part_range(number)
            pairs = match.pairs[places.start : places.stop]
            results = list(pool.map(convert, pairs))
            done = [result for result in results if isinstance(result, _Converted)]
            left_out = [result for result in results if isinstance(result, manifests.Skipped)]
            skipped += left_out
            _check_share(skipped, len(ids), max_skipped)
            empty = np.zeros((0, layout.crops), record.dtype)
            boxes, flips = (
                np.zeros((0, layout.crops, 4), np.int64),
                np.zeros((0, layout.crops), bool),
            )
            writer.write(
                number,
                [image.id for image in done],
                np.array([image.row for image in done], IMAGE),
                np.concatenate([boxes, *(image.boxes[None] for image in done)]),
                np.concatenate([flips, *(image.flips[None] for image in done)]),
                np.concatenate([empty, *(image.records[None] for image in done)]),
                left_out,
            )
            if progress:
                progress(places.stop, len(ids))
        store = writer.finish()
    return ImportReport(
        store,
        layout.kind,
        len(ids),
        match.unmatched_labels,
        match.unmatched_images,
        match.ambiguous,
        _uncertain_boxes(store) if layout.coordinates == "float16" else 0,
        _teacher_right(store),
    )


class _Layout(NamedTuple):
    """What all label files of an import have in common."""

    kind: Kind
    k: int
    num_classes: int
    crops: int
    coordinates: str  # the type of the numbers
    labels: str

    @staticmethod
    def of(
        file: LabelFile, path: Path, kind: str, num_classes: int | None, crops: int | None
    ) -> _Layout:
        """The layout of one file, of which ``crops`` crops are used (None: all)."""
        held, shape = len(file.coords), file.labels.shape
        try:
            found = kind_of(shape, kind, num_classes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if found == "full":
            num_classes = shape[1]
        if num_classes is None:
            raise InputError(
                f"{path} holds {found} labels, which do not tell of how many classes; give "
                "num_classes (--num-classes)"
            )
        if crops is not None and held < crops:
            raise InputError(
                f"{path} holds {held} crops, fewer than the {crops} asked for; ask for fewer"
            )
        if (used := crops or held) > manifests.MAX_CROPS:
            raise InputError(
                f"{path} holds {held} crops; give crops (--crops), at most {manifests.MAX_CROPS:,}"
            )
        k = {"full": shape[-1], "top-k": shape[-1]}.get(found, 1)
        types = (str(file.coords.dtype), str(file.labels.dtype))
        return _Layout(found, k, num_classes, used, *types)


def _probe(
    root: Path, paths: Sequence[str], kind: str, num_classes: int | None, crops: int | None
) -> _Layout:
    """The layout of the first label file that can be read. Raises InputError."""
    reason = "no label file fits one image alone"
    for path in paths[:_PROBED]:
        try:
            file = read_label_file(root / path)
        except DamagedLabels as error:
            reason = f"{path}: {error}"
            continue
        layout = _Layout.of(file, root / path, kind, num_classes, crops)
        coarse = layout.labels == "float16" and layout.kind != "full"
        if coarse and layout.num_classes > EXACT_HALF_CLASSES:
            raise InputError(
                f"{root / path} holds class numbers in half precision, which is exact up to "
                f"{EXACT_HALF_CLASSES - 1} only; with {layout.num_classes} classes it cannot be "
                "told which class is meant: use labels in single precision"
            )
        return layout
    raise InputError(f"no label file of {root} can be read ({reason}); check that they are FKD's")


def _class_count(num_classes: int | None, source: ImageSource) -> int:
    folders = len(source.class_names)
    if num_classes not in (None, folders):
        raise InputError(
            f"num_classes is {num_classes}, but {source.name} has {folders} class folders; if the "
            "folders are not the labels' classes, use --no-targets (targets=False)"
        )
    return folders


class _Converted(NamedTuple):
    """One image of the store to be: its id, its row of the image table, its boxes
    [crops, 4], flips and records [crops]."""

    id: str
    row: tuple[int, int, int, int, int]
    boxes: NDArray[np.integer]
    flips: NDArray[np.bool_]
    records: NDArray[Any]


@dataclass(frozen=True)
class _Converter:
    """Turns one label file and its image into records."""

    root: Path
    source: ImageSource
    layout: _Layout
    record: RecordFormat
    crops: int | None
    resized: bool

    def __call__(self, pair: tuple[int, str]) -> _Converted | manifests.Skipped:
        place, path = pair
        image_id = self.source.ids[place]
        try:
            coords, flips, labels = self._read(self.root / path)
            data = self.source.read(place)
            height, width = decode(data, exif=False).shape[:2]
            if max(height, width) > MAX_SIDE:
                raise UnreadableImage(f"a side is longer than {MAX_SIDE} pixels")
            boxes = boxes_of(coords, height, width, resized=self.resized)
        except UnreadableImage as error:
            return manifests.Skipped(id=image_id, reason=str(error))
        except DamagedLabels as error:
            return manifests.Skipped(id=image_id, reason=f"its label file: {error}")
        row = (0, fingerprint(data), int(self.source.targets[place]), height, width)
        return _Converted(image_id, row, boxes, flips, self.record.encode(labels))

    def _read(self, path: Path) -> tuple[NDArray[np.floating], NDArray[np.bool_], SoftLabels]:
        file, layout = read_label_file(path), self.layout
        found = _Layout.of(file, path, layout.kind, layout.num_classes, self.crops)
        for name, theirs, here in zip(_Layout._fields, layout, found, strict=True):
            if theirs != here:
                raise InputError(
                    f"{path} differs from the other label files: {name} {here}, not {theirs}; "
                    "import each kind apart, and for fewer crops give crops (--crops) to take the "
                    "first so many of each"
                )
        first = slice(layout.crops)
        labels = labels_of(file.labels[first], layout.kind, layout.num_classes)
        return file.coords[first], file.flips[first], labels


def _check_share(skipped: Sequence[manifests.Skipped], total: int, limit: float) -> None:
    if len(skipped) > limit * total:
        shown = "; ".join(f"{visible(s.id)} ({visible(s.reason)})" for s in skipped[:5])
        raise InputError(
            f"{len(skipped)} of {total} images cannot be imported, more than the {limit:.1%} "
            f"allowed: {shown}. Mend or remove them, or allow a larger share with "
            "max_skipped (--max-skipped)"
        )


def _uncertain_boxes(store: LabelStore) -> int:
    sizes = store.images
    large = np.flatnonzero(np.maximum(sizes["height"], sizes["width"]) > EXACT_HALF_SIDE)
    count = 0
    for row in large:
        boxes = store.boxes(row, np.arange(store.crops_per_image))
        count += int(uncertain(boxes, sizes["height"][row], sizes["width"][row]).sum())
    return count


def _teacher_right(store: LabelStore) -> float | None:
    known = np.flatnonzero(store.targets >= 0)
    if not len(known):
        return None
    rows = known[np.linspace(0, len(known) - 1, min(_SAMPLED, len(known))).astype(int)]
    answers = store.labels(rows[:, None], np.arange(store.crops_per_image)).top1().numpy()
    return float((answers.reshape(len(rows), -1) == store.targets[rows][:, None]).mean())
