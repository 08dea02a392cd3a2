"""A labelling pass made ready, and its parts labelled one by one, in whatever process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from ferkd import __version__
from ferkd.crops import CUT_RULE, CropDistribution
from ferkd.images import (
    DECODER,
    ImageSource,
    Unreadable,
    check_unreadable_share,
    open_images,
    refuse_inside_images,
)
from ferkd.labelling.agreement import Agreement
from ferkd.labelling.answering import Answers, Given, answering, batch_of, form_of
from ferkd.labelling.given import NO_CROP, GivenCrops, read_crops
from ferkd.labelling.labeller import Labeller
from ferkd.labelling.maps import MapTeacher
from ferkd.labelling.relabelling import ShownCrops, check_same_images, extended, on_boxes_of
from ferkd.labelling.settings import Labelling, default_part
from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter
from ferkd.store.derive import refuse_inside
from ferkd.store.reader import LabelStore
from ferkd.store.sharing import Shard, SharedSignalWriter, SharedWriter
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError

CROPS = 50  # per image, where nothing else is said
_LIMIT = "max_unreadable (--max-unreadable)"


@dataclass(frozen=True)
class Pass:
    """What one labelling pass shows to whom, and what it records."""

    wanted: Labelling
    source: ImageSource
    answers: Answers
    agreement: Agreement | None
    recorded: manifests.Settings
    shown: ShownCrops
    batch_size: int

    @classmethod
    def prepare(
        cls,
        images: str | Path | ImageSource,
        teacher: Given,
        out: str | Path,
        wanted: Labelling,
        *,
        begun: bool = False,
    ) -> Self:
        """Open the images and the teacher; with labels ``begun`` it is not tried out again.

        Raises InputError for images, teachers and stores that do not go together.
        """
        given = wanted.boxes_from if wanted.boxes_from is not None else wanted.add_to
        base = None if given is None else LabelStore.open(given)
        if wanted.into:
            base = LabelStore(out)
            wanted = _added(wanted, base)
        source = open_images(images, targets=wanted.targets)
        refuse_inside_images(out, source)
        if base is not None:
            if not wanted.into:
                refuse_inside(out, [base])
            manifests.check_kind(base.geometry, "random", base.path)
            check_same_images(source, base)
        crops = None if wanted.crops_from is None else read_crops(wanted.crops_from)
        if crops is not None:
            crops.check_images(source.ids)
        answers, agreement, names = answering(teacher, wanted, source, begun=begun)
        batch_size = batch_of(answers, wanted, base)
        recorded = manifests.Settings(
            **form_of(answers, wanted),
            crops=_crops(answers, wanted, base, crops),
            images=manifests.Images(decoder=DECODER, exif=wanted.exif, listing=listing(source.ids)),
            # The batch size is here because float rounding may depend on it.
            teacher={**answers.describe(), "batch_size": batch_size},
            class_names=names,
            targets=wanted.targets,
            part_images=wanted.part_images or default_part(len(source)),
            software=f"ferkd {__version__}, torch {torch.__version__}",
        )
        shown = ShownCrops(recorded.crops, base, given=crops, whole=wanted.per == "image")
        if base is not None and wanted.add_to is not None:
            recorded = extended(recorded, base)
            shown = ShownCrops(recorded.crops, base, first=base.crops_per_image)
        elif base is not None:
            of_base = on_boxes_of(recorded, base)
            recorded = recorded if wanted.into else of_base
        return cls(wanted, source, answers, agreement, recorded, shown, batch_size)

    def writer(
        self, out: str | Path, *, resume: bool = False, overwrite: bool = False
    ) -> StoreWriter:
        """The writer of one process alone: of a new store, or of a signal more."""
        write = SignalWriter if self.wanted.into else StoreWriter
        return write(
            out,
            self.recorded,
            len(self.source),
            signal=self.wanted.signal,
            resume=resume,
            overwrite=overwrite,
        )

    def shared_writer(self, out: str | Path, shard: Shard | None) -> SharedWriter:
        """The writer of one of several processes; see :func:`shared_writer`."""
        return shared_writer(out, self.recorded, len(self.source), self.wanted, shard)


def shared_writer(
    out: str | Path,
    recorded: manifests.Settings,
    count: int,
    wanted: Labelling,
    shard: Shard | None,
) -> SharedWriter:
    """The writer of one of the processes that label ``count`` images together.

    Without a ``shard`` it writes the parts that it is told to. Raises InputError.
    """
    if wanted.signal is not None and not wanted.into:
        raise InputError(
            f"signal is {wanted.signal}, but the labels of a new store that several processes "
            "write are named labels, or features; leave signal out, or give into a store"
        )
    write = SharedSignalWriter if wanted.into else SharedWriter
    return write(out, recorded, count, shard=shard, signal=wanted.signal)


class PartLabeller:
    """Labels parts of a pass and writes each when it is done."""

    def __init__(self, job: Pass, writer: StoreWriter, pool: ThreadPoolExecutor) -> None:
        self._job, self._writer = job, writer
        self._labeller = Labeller(
            job.source,
            job.answers,
            job.recorded,
            job.shown,
            job.batch_size,
            job.wanted.workers,
            pool,
            job.agreement,
        )
        self._unreadable: list[Unreadable] = []
        self.parts = 0  # written so far

    def write(self, number: int, tell: Callable[[int], None]) -> int:
        """Label and write a part; returns its crops. ``tell`` hears after each batch how many.

        Raises InputError where too many images are unreadable, or the labels deny the ground truth.
        """
        job, writer = self._job, self._writer
        part = self._labeller.label(writer.part_range(number), tell)
        self._unreadable += (skip for skip in part.skipped if skip.reason != NO_CROP)
        limit, given = job.wanted.unreadable_limit, job.shown.given
        shown = len(job.source if given is None else given.of)
        check_unreadable_share(self._unreadable, shown, limit, option=_LIMIT)
        skipped = [manifests.Skipped(id=s.id, reason=s.reason) for s in part.skipped]
        of_crops = job.shown.joined(part.ids, *part.joined())
        writer.write(number, part.ids, part.table(), *of_crops, skipped)
        self.parts += 1
        if job.agreement is not None and self.parts & (self.parts - 1) == 0:
            job.agreement.check()
        return len(part.ids) * job.shown.new

    def close(self) -> None:
        """Compare all labels of this process with the ground truth a last time."""
        if self._job.agreement is not None and self.parts:
            self._job.agreement.check()
            self._job.agreement.warn()


def check_skipped(writer: StoreWriter, wanted: Labelling) -> None:
    """Raise InputError where the parts of all processes left out more images than ``wanted``."""
    if not writer.finished():
        skipped = writer.skipped()
        unreadable = [Unreadable(s.id, s.reason) for s in skipped if s.reason != NO_CROP]
        shown = writer.total - len(skipped) + len(unreadable)
        check_unreadable_share(unreadable, shown, wanted.unreadable_limit, option=_LIMIT)


def _added(wanted: Labelling, base: LabelStore) -> Labelling:
    """``wanted`` for a signal more of the store ``base``, whose parts and ground truth it has."""
    known = base.geometry.targets
    if wanted.kind == "features":  # of no classes
        return replace(wanted, part_images=base.geometry.part_images, targets=known)
    if wanted.targets and not known:
        raise InputError(
            f"{base.path} knows no ground truth, so its images' folders are not the classes of a "
            "signal more either; give --no-targets"
        )
    return replace(wanted, part_images=base.geometry.part_images)


def _crops(
    answers: Answers, wanted: Labelling, base: LabelStore | None, given: GivenCrops | None
) -> manifests.Crops:
    """Those of a map's grid or of a file; else those asked for, and what is None is the store's, or
    the default without one."""
    if isinstance(answers, MapTeacher):
        return answers.crops
    if given is not None:
        return given.crops
    default = manifests.Crops(count=CROPS, distribution=CropDistribution(), seed=0, rule=CUT_RULE)
    asked = {
        "count": wanted.crops,
        "distribution": wanted.distribution,
        "seed": wanted.seed,
        "rule": CUT_RULE,
    }
    stated = {key: value for key, value in asked.items() if value is not None}
    return (default if base is None else base.geometry.crops).model_copy(update=stated)
