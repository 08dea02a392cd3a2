"""Phase 1 of ``ferkd distill``: the images, before anything is paid for with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.evaluating.split import split_folder
from ferkd.images import (
    UNLABELLED,
    ImageSource,
    UnreadableImage,
    check_unreadable_share,
    decode,
    fingerprint,
    open_images,
    refuse_other_sources,
)
from ferkd.images.decode import Unreadable
from ferkd.product.bundle import refuse_odd_names
from ferkd.product.settings import Settings
from ferkd.system import text as texts
from ferkd.system.errors import InputError
from ferkd.system.threads import ahead
from ferkd.system.threads import workers as worker_threads

_DECODED = 4000  # images of a side whose sizes are measured; files are all read
_FEW = 20  # images of a class, below which a warning is given
_UNEVEN = 10.0  # the largest class, as a multiple of the smallest


@dataclass(frozen=True)
class Look:
    """What was found: folders, counts, sizes in pixels, and what a user should know."""

    train: str
    val: str
    labelled: str  # the class folders alone, where ``train`` has images without a class too
    classes: tuple[str, ...]
    images: int
    unlabelled: int
    val_images: int
    smallest_class: int
    largest_class: int
    short_side: int  # the median
    pixels: float  # mean, of a decoded image
    file_bytes: float  # mean
    duplicates: int  # of val that are in train too, byte for byte
    unreadable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """One screen."""
        more = f" and {self.unlabelled:,} without a class" if self.unlabelled else ""
        names = ", ".join(self.classes[:6]) + (", …" if len(self.classes) > 6 else "")
        return [
            f"train  {self.images:,} images{more} of {len(self.classes)} classes ({names})",
            f"val    {self.val_images:,} images: {self.val}",
            f"sizes  shorter side {self.short_side} px (median), "
            f"{self.smallest_class} to {self.largest_class} images a class",
            *(f"note   {warning}" for warning in self.warnings),
        ]


def look(
    settings: Settings, work: Path, *, progress: Callable[[int, int, str], None] | None = None
) -> Look:
    """Look at the images of ``settings``; what has to be laid out (a split, unlabelled images
    beside labelled ones) goes to the folder ``work``, as links.

    Raises InputError for what cannot work: one class, a validation set that lacks a class or has
    others, images that cannot be read.
    """
    labelled, val = _folders(settings, work)
    source, held = open_images(labelled), open_images(val)
    names = source.class_names
    if len(names) < 2:
        raise InputError(
            f"{labelled} has {len(names)} class folder{'s' * (len(names) != 1)} "
            f"({', '.join(names)}); a classifier needs at least 2"
        )
    refuse_odd_names(names)  # here, and not when the trained student is delivered
    lacking = [name for name in names if name not in set(held.class_names)]
    foreign = [name for name in held.class_names if name not in set(names)]
    if lacking or foreign:
        what = f"lack the class {lacking[0]!r}" if lacking else f"have a class {foreign[0]!r} more"
        raise InputError(
            f"the validation images {val} {what} ({len(names)} classes in {labelled}); give both "
            "the same class folders"
        )
    train, extra = labelled, 0
    if settings.unlabelled is not None:
        train, extra = _beside(labelled, settings.unlabelled, work)
    everything = open_images(train)
    tell = progress or (lambda done, total, note: None)
    total = len(everything) + len(held)
    ours = _read(everything, settings.workers, lambda n: tell(n, total, "images"))
    theirs = _read(held, settings.workers, lambda n: tell(len(everything) + n, total, "images"))
    known = {mark for mark in ours.marks if mark is not None}
    twice = sum(mark in known for mark in theirs.marks if mark is not None)
    counts = np.bincount(source.targets[source.targets >= 0], minlength=len(names))
    sides = np.array([min(size) for size in ours.sizes])
    unreadable = [*ours.unreadable, *theirs.unreadable]
    return Look(
        train=str(train),
        val=str(val),
        labelled=str(labelled),
        classes=names,
        images=len(source),
        unlabelled=extra,
        val_images=len(held),
        smallest_class=int(counts.min()),
        largest_class=int(counts.max()),
        short_side=int(np.median(sides)),
        pixels=float(np.mean([h * w for h, w in ours.sizes])),
        file_bytes=float(np.mean(ours.lengths)),
        duplicates=twice,
        unreadable=tuple(u.id for u in unreadable),
        warnings=tuple(_warnings(counts, names, twice, len(held), unreadable)),
    )


@dataclass
class _Read:
    marks: list[int | None]
    lengths: list[int]
    sizes: list[tuple[int, int]]
    unreadable: list[Unreadable]


def _read(source: ImageSource, workers: int, tell: Callable[[int], None]) -> _Read:
    """Every file's fingerprint, and the size of a spread of them."""
    stride = max(1, len(source) // _DECODED)
    found = _Read([], [], [], [])

    def one(place: int) -> tuple[int, int, tuple[int, int] | str | None]:
        data = source.read(place)
        size: tuple[int, int] | str | None = None
        if place % stride == 0:
            try:
                height, width = decode(data).shape[:2]
                size = (height, width)
            except UnreadableImage as error:
                size = str(error)
        return fingerprint(data), len(data), size

    with worker_threads(workers) as pool:
        reading = (pool.submit(one, place) for place in range(len(source)))
        for place, (mark, length, size) in enumerate(ahead(reading, 2 * workers)):
            found.lengths.append(length)
            if isinstance(size, str):
                found.unreadable.append(Unreadable(source.ids[place], size))
            elif size is not None:
                found.sizes.append(size)
            found.marks.append(None if isinstance(size, str) else mark)
            tell(place + 1)
    check_unreadable_share(found.unreadable, -(-len(source) // stride))
    return found


def _folders(settings: Settings, work: Path) -> tuple[Path, Path]:
    """The class folders to learn from and to validate on."""
    refuse_other_sources(settings.images, "distill")
    images = Path(settings.images).expanduser()
    inner = {name: images / name for name in ("train", "val") if (images / name).is_dir()}
    if settings.val is not None:
        return _absolute(inner.get("train", images)), _absolute(Path(settings.val).expanduser())
    if len(inner) == 2:
        return _absolute(inner["train"]), _absolute(inner["val"])
    if not images.is_dir():
        raise InputError(f"{images}: there is no such folder. Check the path of the images")
    whole = open_images(inner.get("train", images))
    if len(whole.class_names) < 2:
        raise InputError(
            f"{images} has {len(whole.class_names)} class folder"
            f"{'s' * (len(whole.class_names) != 1)} ({', '.join(whole.class_names)}); a classifier "
            "needs at least 2"
        )
    split = work / "split"
    if not split.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        split_folder(inner.get("train", images), split, settings.held_out)
    return _absolute(split / "train"), _absolute(split / "val")


def _beside(labelled: Path, unlabelled: str, work: Path) -> tuple[Path, int]:
    """A folder of links to the class folders and to the images without a class."""
    folder = Path(unlabelled).expanduser()
    more = open_images(folder, targets=False)
    together = work / "train"
    together.mkdir(parents=True, exist_ok=True)
    for name, target in [
        *((entry.name, entry) for entry in sorted(labelled.iterdir()) if entry.is_dir()),
        (UNLABELLED, folder),
    ]:
        link = together / name
        if not link.is_symlink():
            link.symlink_to(target.resolve(), target_is_directory=True)
    return _absolute(together), len(more)


def _warnings(
    counts: np.ndarray, names: tuple[str, ...], twice: int, held: int, unreadable: list[Unreadable]
) -> Iterator[str]:
    if twice:
        yield (
            f"{twice} of the {held} validation images are in train too, byte for byte: figures on "
            "them say too much"
        )
    if counts.min() < _FEW:
        yield f"class {names[int(counts.argmin())]} has {counts.min()} images, which is few"
    if counts.max() > _UNEVEN * counts.min():
        yield (
            f"the classes are uneven: {names[int(counts.argmax())]} has {counts.max()} images, "
            f"{names[int(counts.argmin())]} has {counts.min()}"
        )
    if unreadable:
        shown = texts.name(unreadable[0].id)
        yield f"{len(unreadable)} images cannot be read, such as {shown}: left out"


def _absolute(path: Path) -> Path:
    return Path(path).absolute()
