"""Is a label store whole, and is it the store of these images and of this teacher?"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ferkd.images import ImageSource, decode, fingerprint, open_images
from ferkd.labelling.maps import grid_boxes
from ferkd.models.teacher import Teacher
from ferkd.store import manifest as manifests
from ferkd.store.reader import MANIFEST, LabelStore, split_signals
from ferkd.store.structure import OUTSIDE, Problem, outside, table_problems
from ferkd.store.walk import places
from ferkd.system.errors import InputError
from ferkd.system.settings import check_seed

_LISTED = 20  # problems of one kind that are named; the rest are counted
_READERS = 2  # threads that read images
_LEFT_BY_A_JOB = ("lock", "settings.json", "parts")


@dataclass(frozen=True)
class Verification:
    """What :func:`verify_store` found: ``problems`` in the store's order, ``figures`` by name."""

    problems: tuple[Problem, ...]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_store(
    path: str | Path,
    *,
    images: str | Path | ImageSource | None = None,
    teacher: str | Path | nn.Module | Teacher | None = None,
    sample: int = 64,
    seed: int = 0,
    device: str = "auto",
) -> Verification:
    """Check a finished label store, and with them its images and its teacher.

    Always: the manifest's digest, the folder's files and no others, their sizes, SHA-256 and
    shapes, and that ids, targets, boxes and labels are possible ones (the boxes of label maps: the
    cells of their grid). With ``images``: every id, content and decoded size. With ``teacher``
    (which needs ``images``): ``sample`` random crops or cells are labelled again, those of the
    signal NAME for a ``path#NAME``, see :mod:`ferkd.labelling.replay`. A stage runs only if the
    ones before found nothing. Nothing pickled is executed and no link is followed. Raises
    InputError where there is no finished store, and for images or a teacher that cannot be compared
    with it.
    """
    if teacher is not None and images is None:
        raise InputError(
            "a teacher is compared by labelling crops again, which needs the images; give both "
            "(--images IMAGES --teacher T)"
        )
    if sample < 1:
        raise InputError(f"sample is {sample}; replay at least 1 crop")
    check_seed(seed)
    place, named = split_signals(path)
    store = _open(Path(place))
    if isinstance(store, Problem):
        return Verification((store,))
    if named:
        store = LabelStore(store.path, named)
    figures: dict[str, Any] = {
        "images": len(store),
        "crops_per_image": store.crops_per_image,
        "files": 1 + len(store.files),
        **store.geometry.crops.grid,
        "bytes": store.bytes_on_disk,
        "skipped": len(store.manifest.skipped),
        "signals": list(store.manifest.signals),
    }
    problems = _some(_file_problems(store))
    if not problems:
        problems = _some(table_problems(store))
    if not problems:
        problems = _some(_record_problems(store))
    if not problems and images is not None:
        source = open_images(images, targets=store.geometry.targets)
        problems = _some(_image_problems(store, source))
        figures["images_compared"] = len(store)
        known = {*store.ids, *(skip.id for skip in store.manifest.skipped)}
        figures["images_without_labels"] = sum(image_id not in known for image_id in source.ids)
        if not problems and teacher is not None:
            from ferkd.labelling.replay import replay

            replayed, differing = replay(store, source, teacher, sample, seed, device)
            figures |= replayed
            problems = _some(Problem(*offender) for offender in differing)
    return Verification(tuple(problems), figures)


def _open(path: Path) -> LabelStore | Problem:
    """The store, or what is wrong with its manifest. Raises InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; give the path of a label store on this machine")
    manifest = path / MANIFEST
    names = {entry.name for entry in path.iterdir()}
    if MANIFEST not in names and "settings.json" not in names and "images.npy" in names:
        return Problem(MANIFEST, "is missing; fetch the store again")
    if (link := _not_plain(manifest)) and MANIFEST in names:
        return Problem(MANIFEST, link)
    try:
        return LabelStore(path)
    except InputError as error:
        if MANIFEST not in names:
            raise
        return Problem(MANIFEST, str(error))


def _some(problems: Iterable[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    rest = iter(problems)
    listed = list(islice(rest, _LISTED))
    more = sum(1 for _ in rest)
    return [*listed, Problem(f"{more} more", "not listed")] if more else listed


def _file_problems(store: LabelStore) -> Iterator[Problem]:
    """Names, kinds, sizes, checksums, dtypes and shapes, file by file."""
    expected = [file.name for file in store.files]
    intact = True
    for file in store.files:
        if problem := _file_problem(store.folder, file):
            intact = False
            yield Problem(file.name, problem)
    if intact:
        try:
            store.map_all()
        except InputError as error:
            yield Problem(MANIFEST, str(error))
    for extra in sorted({p.name for p in store.folder.iterdir()} - {MANIFEST, *expected}):
        if extra in _LEFT_BY_A_JOB or extra.startswith("adding-"):
            yield Problem(
                extra, "left by a labelling job that was ended; ferkd label --resume removes it"
            )
        else:
            yield Problem(ascii(extra)[1:-1], "does not belong to the store; remove it")


def _file_problem(folder: Path, file: manifests.File) -> str | None:
    path = folder / file.name
    if kind := _not_plain(path):
        return kind
    size = path.stat().st_size
    if size != file.size:
        return f"has {size} bytes instead of {file.size}; fetch the store again"
    with path.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
            return "is damaged: its SHA-256 is not the recorded one; fetch the store again"
    return None


def _not_plain(path: Path) -> str | None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "is missing; fetch the store again"
    if not stat.S_ISREG(mode):
        return "is a link or no plain file, which is not followed; put the file itself there"
    return None


def _record_problems(store: LabelStore) -> Iterator[Problem]:
    """Boxes inside their images; signals that an encoder can have written."""
    for rows, crops in places(store, 8):
        table = store.images[rows]
        boxes = store.raw_boxes(rows, crops)
        wrongs = [(outside(boxes, table["height"], table["width"]), OUTSIDE)]
        if store.geometry.crops.is_map:
            wrongs.append(_not_its_cell(store, rows, crops, boxes))
        yield from _named(store, rows, crops, wrongs)
    spare = -store.crops_per_image % 8
    last = store.packed_flips[:, -1]
    for row in np.flatnonzero(last >> (8 - spare)) if spare else ():
        yield Problem(store.ids[int(row)], "bits of flips beyond its crops are set")
    for name in store.manifest.signals:
        signal = store.signal(name)
        for rows, crops in places(store, signal.format.dtype.itemsize):
            if signal.width == 1:
                rows, crops = rows[crops == 0], crops[crops == 0]
            wrongs = list(signal.format.impossible(signal.raw_records(rows, crops)))
            yield from _named(store, rows, crops, wrongs)
        for beside, file in signal.stored.tables.items():
            if not np.isfinite(signal.table(beside)).all():
                yield Problem(file.name, "holds numbers that are not finite")


def _named(
    store: LabelStore,
    rows: NDArray[np.integer],
    crops: NDArray[np.integer],
    wrongs: Iterable[tuple[NDArray[np.bool_], str]],
) -> Iterator[Problem]:
    for wrong, what in wrongs:
        for i in np.flatnonzero(wrong):
            yield Problem(f"{store.ids[int(rows[i])]}, crop {crops[i]}", what)


def _not_its_cell(
    store: LabelStore,
    rows: NDArray[np.integer],
    crops: NDArray[np.integer],
    stored: NDArray[np.integer],
) -> tuple[Any, str]:
    """Which of the boxes [n, 4] of a map are not of the cell that their number ``crops`` names."""
    grid = store.geometry.crops
    several, of_several = np.unique(rows, return_inverse=True)
    table = store.images[several]
    boxes = grid_boxes(table["height"], table["width"], grid.rows, grid.columns)
    wrong = (stored != boxes[of_several, crops]).any(1) | store.flips(rows, crops)
    return wrong, f"its box is not its cell of the {grid.rows}x{grid.columns} grid"


def _image_problems(store: LabelStore, source: ImageSource) -> Iterator[Problem]:
    """Every image of the store: is it there, with the recorded content and decoded size."""
    named = store.geometry.class_names
    if source.class_names and store.geometry.targets and source.class_names != named:
        yield Problem(source.name, "its classes are not those of the store")
        return
    places = {image_id: place for place, image_id in enumerate(source.ids)}

    def compare(row: int) -> Problem | None:
        image_id, entry = store.ids[row], store.images[row]
        if image_id not in places:
            return Problem(image_id, f"is not in {source.name}")
        place = places[image_id]
        try:
            data = source.read(place)
            if fingerprint(data) != int(entry["fingerprint"]):
                return Problem(image_id, "its content is not what was labelled")
            height, width = decode(data, exif=store.geometry.images.exif).shape[:2]
        except InputError as error:
            return Problem(image_id, f"cannot be read: {error}")
        if (height, width) != (entry["height"], entry["width"]):
            labelled = f"{entry['height']}x{entry['width']}"
            return Problem(image_id, f"decodes to {height}x{width} pixels, labelled at {labelled}")
        target = int(source.targets[place])
        if target >= 0 and target != entry["target"]:
            return Problem(image_id, f"is of class {target}, labelled as {entry['target']}")
        return None

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(store), 256):
            for problem in pool.map(compare, range(start, min(start + 256, len(store)))):
                if problem:
                    yield problem
