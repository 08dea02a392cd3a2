"""The labelling pass: every image's crops through the teacher once, into a label store.

Work is done part by part. Within a part, crops of many images share the teacher's batches; a
batch never crosses into another part, so a store's bytes do not depend on where a job was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd import __version__
from ferkd.crops import CUT_RULE, CropDistribution, cut
from ferkd.images import (
    DECODER,
    ImageSource,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
    fingerprint,
    named,
    open_images,
    refuse_inside_images,
)
from ferkd.labelling.agreement import Agreement, agreement_to_keep, probe
from ferkd.labelling.features import FeatureTeacher
from ferkd.labelling.given import read_crops
from ferkd.labelling.maps import MapTeacher, map_teacher
from ferkd.labelling.relabelling import CropPlan, check_same_images, extended, on_boxes_of
from ferkd.labelling.settings import Labelling, default_batch, default_part
from ferkd.models.committee import Committee, load_committee
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter
from ferkd.store.derive import chunks, refuse_inside
from ferkd.store.features import FeatureFormat
from ferkd.store.reader import IMAGE, LabelStore
from ferkd.store.records import MAX_SIDE, RecordFormat
from ferkd.store.sharing import Shard, SharedWriter
from ferkd.store.soft import SoftLabels
from ferkd.store.unfinished import begun_settings, has_labels
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError
from ferkd.system.threads import ahead
from ferkd.system.threads import workers as worker_threads

CROPS = 50  # per image, where nothing else is said
_LIMIT = "max_unreadable (--max-unreadable)"


@dataclass(frozen=True)
class Progress:
    """How far a labelling pass is: images done of all, the crops (or cells) labelled in this run,
    and the parts of the store written in it."""

    done: int
    total: int
    crops: int
    seconds: float
    parts: int = 0

    @property
    def crops_per_second(self) -> float:
        return self.crops / self.seconds if self.seconds else 0.0


def label(
    images: str | Path | ImageSource,
    teacher: str | Path | nn.Module | Teacher | Committee,
    out: str | Path,
    settings: Labelling | None = None,
    *,
    resume: bool = False,
    recheck: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> LabelStore:
    """Label random crops of every image with a teacher; returns the finished store.

    ``images`` is a folder (or source), ``teacher`` a spec (see ferkd.models.specs) or module, or
    several as ``A,B@0.5`` (ferkd.models.committee), ``out`` a new folder. ``settings`` and
    ``options`` (its fields by name, which take precedence) are those of
    :class:`ferkd.labelling.settings.Labelling`: ``label(images, teacher, out, crops=20, top_k=5)``.
    Images that cannot be read are listed in the store and left out. Raises InputError; a killed run
    is continued with ``resume``, and with ``recheck`` the images labelled so far are read again and
    those that changed since (or could not be read) are labelled anew, with their parts.

    ``boxes_from`` is a store of the same images, whose crops are labelled: its count, distribution
    and seed are taken over. ``add_to`` is a store made with the same settings and fewer crops: its
    labels are taken over as they are and only the new crops are shown to the teacher. It stays
    untouched, and ``out`` is what ``crops`` from the start would have given, but for the float
    rounding of another batch composition. Both pass over the images that the store left out, and
    refuse images other than those it labelled.
    """
    store = _label(
        images, teacher, out, settings, None, resume, recheck, overwrite, progress, **options
    )
    assert store is not None  # one process alone finishes its store
    return store


def label_shard(
    images: str | Path | ImageSource,
    teacher: str | Path | nn.Module | Teacher | Committee,
    out: str | Path,
    shard: Shard,
    settings: Labelling | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> LabelStore | None:
    """Label one process's shard of a store that several write together into ``out``.

    All are given the same images, teacher and settings, as in :func:`label`. An unfinished store is
    continued. Parts of shards whose process has died are labelled too. Returns the finished store,
    or None where parts are left to other processes: the last of them finishes it. Raises
    InputError.
    """
    return _label(images, teacher, out, settings, shard, True, False, False, progress, **options)


def finish(images: str | Path | ImageSource, out: str | Path, targets: bool = True) -> LabelStore:
    """Join the parts that several processes have written into the finished store.

    Raises InputError where parts are missing, or for other images.
    """
    source = open_images(images, targets=targets)
    settings = begun_settings(out)
    if settings.images.listing != listing(source.ids):
        raise InputError(f"the images of {source.name} are not those that {out} was begun with")
    with SharedWriter(out, settings, len(source), shard=Shard()) as writer:
        if missing := writer.missing():
            raise InputError(
                f"{len(missing)} of the {writer.parts} parts of {out} are not labelled yet (first: "
                f"{missing[0]}); run the shards that were to write them again"
            )
        return writer.finish()


def _label(
    images: str | Path | ImageSource,
    teacher: str | Path | nn.Module | Teacher | Committee,
    out: str | Path,
    settings: Labelling | None,
    shard: Shard | None,
    resume: bool,
    recheck: bool,
    overwrite: bool,
    progress: Callable[[Progress], None] | None,
    **options: Any,
) -> LabelStore | None:
    wanted = replace(settings or Labelling(), **options)
    if shard is not None and wanted.device == "auto" and torch.cuda.is_available():
        place = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        wanted = replace(wanted, device=f"cuda:{place}")  # one process a device
    if shard is not None and (wanted.into or wanted.signal is not None):
        raise InputError(
            "several processes write a new store with the default signal; leave out into and "
            "signal, and add signals by one process"
        )
    given = wanted.boxes_from if wanted.boxes_from is not None else wanted.add_to
    base = None if given is None else LabelStore.open(given)
    if wanted.into:
        base = LabelStore(out)
        wanted = replace(wanted, part_images=base.manifest.geometry.settings.part_images)
    source = open_images(images, targets=wanted.targets)
    refuse_inside_images(out, source)
    if base is not None:
        if not wanted.into:
            refuse_inside(out, [base])
        manifests.check_kind(base.geometry, "random", base.path)
        check_same_images(source, base)
    given_crops = None if wanted.crops_from is None else read_crops(wanted.crops_from)
    if given_crops is not None:
        given_crops.check_images(source.ids)
    answers, agreement, names = _teacher(teacher, wanted, source, begun=resume and has_labels(out))
    batch_size = _batch_size(wanted, answers, base)
    recorded = manifests.Settings(
        **_form(wanted, answers),
        crops=(
            answers.crops
            if isinstance(answers, MapTeacher)
            else given_crops.crops
            if given_crops is not None
            else _crops(wanted, base)
        ),
        images=manifests.Images(decoder=DECODER, exif=wanted.exif, listing=listing(source.ids)),
        # The batch size is here because float rounding may depend on it.
        teacher={**answers.describe(), "batch_size": batch_size},
        class_names=names,
        targets=wanted.targets,
        part_images=wanted.part_images or default_part(len(source)),
        software=f"ferkd {__version__}, torch {torch.__version__}",
    )
    plan = CropPlan(recorded.crops, base, given=given_crops, whole=wanted.per == "image")
    if base is not None and wanted.add_to is not None:
        recorded = extended(recorded, base)
        plan = CropPlan(recorded.crops, base, first=base.crops_per_image)
    elif base is not None:
        of_base = on_boxes_of(recorded, base)
        recorded = recorded if wanted.into else of_base
    # What a store left out was accepted when it was made, and what has no crop is left out.
    known = base is not None or given_crops is not None
    max_unreadable = 1.0 if known else wanted.max_unreadable
    count = len(source)
    with (
        _writer(out, recorded, count, wanted, resume=resume, overwrite=overwrite)
        if shard is None
        else SharedWriter(out, recorded, count, shard=shard) as writer,
        worker_threads(wanted.workers) as pool,
    ):
        if recheck:
            writer.drop_changed(source)
        labeller = _Labeller(
            source, answers, recorded, plan, batch_size, wanted.workers, pool, agreement
        )
        missing = writer.missing()
        done = len(source) - sum(len(writer.part_range(number)) for number in missing)
        unreadable: list[Unreadable] = []
        crops_done, parts, begun = 0, 0, time.perf_counter()

        def tell(crops_of_part: int) -> None:
            if progress:
                elapsed = time.perf_counter() - begun
                images_done = done + crops_of_part // plan.new
                crops_in_all = crops_done + crops_of_part
                progress(Progress(images_done, len(source), crops_in_all, elapsed, parts))

        tell(0)
        for number in writer.claimed():
            part = labeller.label(writer.part_range(number), tell)
            unreadable += part.skipped
            check_unreadable_share(unreadable, len(source), max_unreadable, option=_LIMIT)
            skipped = [manifests.Skipped(id=s.id, reason=s.reason) for s in part.skipped]
            of_crops = plan.joined(part.ids, *part.joined())
            writer.write(number, part.ids, part.table(), *of_crops, skipped)
            done += len(writer.part_range(number))
            crops_done += len(part.ids) * plan.new
            parts += 1
            tell(0)
            if agreement is not None and parts & (parts - 1) == 0:
                agreement.check()
        if agreement is not None and parts:
            agreement.check()
            agreement.warn()
        if shard is not None and writer.missing():
            return None
        if not writer.finished():
            skips = _listed(writer.skipped())
            check_unreadable_share(skips, len(source), max_unreadable, option=_LIMIT)
        return writer.finish()


def _writer(
    out: str | Path,
    recorded: manifests.Settings,
    count: int,
    wanted: Labelling,
    *,
    resume: bool,
    overwrite: bool,
) -> StoreWriter:
    """Of a new store, or of a signal more."""
    write = SignalWriter if wanted.into else StoreWriter
    return write(out, recorded, count, signal=wanted.signal, resume=resume, overwrite=overwrite)


Answers = Committee | MapTeacher | FeatureTeacher


def _teacher(
    teacher: str | Path | nn.Module | Teacher | Committee,
    wanted: Labelling,
    source: ImageSource,
    *,
    begun: bool,
) -> tuple[Answers, Agreement | None, tuple[str, ...]]:
    """What answers to crops, what compares its answers with the ground truth, and the names of its
    classes. With labels ``begun`` it is not tried out on images again."""
    on = {"device": wanted.device, "precision": wanted.precision, "image_size": wanted.image_size}
    if wanted.kind == "features":
        if isinstance(teacher, Committee):
            raise InputError("features are of one network; give one teacher")
        loaded = load_teacher(teacher, **on)  # type: ignore[arg-type]
        features = FeatureTeacher(loaded, layer=wanted.layer, normalised=wanted.normalised)
        return features, None, source.class_names if wanted.targets else ()
    committee = load_committee(
        teacher,
        **on,  # type: ignore[arg-type]
        folders=source.class_names if wanted.targets else (),
        class_map=wanted.class_map,
    )
    if wanted.check_agreement and wanted.add_to is None and not begun:
        probe(committee, source, exif=wanted.exif)
    names = source.class_names if wanted.targets else committee.class_names
    if wanted.kind == "map":
        return map_teacher(committee), None, names
    if wanted.check_agreement and wanted.targets:
        return committee, agreement_to_keep(committee, source), names
    return committee, None, names


def _form(wanted: Labelling, answers: Answers) -> dict[str, Any]:
    """The form of the signal, as `record` or `vectors` of the settings."""
    if isinstance(answers, FeatureTeacher):
        codec = "i8" if wanted.values == "auto" else wanted.values
        form = FeatureFormat.choose(answers.dim, codec)
        vectors = manifests.Vectors(
            **vars(form), per=wanted.per, layer=answers.layer, normalised=wanted.normalised
        )
        return {"vectors": vectors}
    record = RecordFormat.choose(wanted.top_k, answers.num_classes, wanted.values)
    return {"record": manifests.Record(**vars(record))}


def _batch_size(wanted: Labelling, answers: Answers, base: LabelStore | None) -> int:
    """The batch size asked for, or of the store that crops are added to, or the device's."""
    if wanted.batch_size is not None:
        return wanted.batch_size
    if wanted.add_to is not None and base is not None:
        recorded = base.settings.teacher.get("batch_size")
        if isinstance(recorded, int) and recorded > 0:
            return recorded
    first = answers.members[0] if isinstance(answers, Committee) else answers.teacher
    return default_batch(first.device.type, max(answers.sizes))


def _crops(wanted: Labelling, base: LabelStore | None) -> manifests.Crops:
    """The crops asked for; what is None is the store's, or the default without one."""
    default = manifests.Crops(count=CROPS, distribution=CropDistribution(), seed=0, rule=CUT_RULE)
    asked = {
        "count": wanted.crops,
        "distribution": wanted.distribution,
        "seed": wanted.seed,
        "rule": CUT_RULE,
    }
    stated = {key: value for key, value in asked.items() if value is not None}
    return (default if base is None else base.geometry.crops).model_copy(update=stated)


def _listed(skipped: list[manifests.Skipped]) -> list[Unreadable]:
    return [Unreadable(s.id, s.reason) for s in skipped]


class _Decoded(NamedTuple):
    place: int  # among the images offered
    pixels: NDArray[np.uint8]
    fingerprint: int


class _Segment(NamedTuple):
    """Some crops of one image, to be cut into a batch."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    target: int
    first: bool  # whether it begins its image


class _Batch(NamedTuple):
    """Crops of several images: uint8 [B, 3, S, S] by size S, and what their records need, [B]."""

    images: dict[int, Tensor]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    targets: NDArray[np.int64]
    images_begun: int  # of its images those whose first crop is here


@dataclass
class _Part:
    """The labels of one part as they grow."""

    dtype: np.dtype[Any]
    crops: int
    ids: list[str] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    boxes: list[NDArray[np.integer]] = field(default_factory=list)
    flips: list[NDArray[np.bool_]] = field(default_factory=list)
    records: list[NDArray[Any]] = field(default_factory=list)
    skipped: list[Unreadable] = field(default_factory=list)

    def table(self) -> NDArray[Any]:
        return np.array(self.rows, IMAGE)

    def joined(self) -> tuple[NDArray[np.integer], NDArray[np.bool_], NDArray[Any]]:
        """Boxes [n, crops, 4], flips [n, crops] and records [n, crops] of the n images."""
        shape = len(self.ids), self.crops
        boxes = np.concatenate([np.zeros((0, 4), np.int32), *self.boxes]).reshape(*shape, 4)
        flips = np.concatenate([np.zeros(0, bool), *self.flips]).reshape(shape)
        return boxes, flips, np.concatenate([np.zeros(0, self.dtype), *self.records]).reshape(shape)


class _Labeller:
    """Images in, records out; decoding and cutting run ahead of the teacher in threads.

    At most ``2 * workers`` decoded images and 2 batches of crops are held at a time.
    """

    def __init__(
        self,
        source: ImageSource,
        teacher: Answers,
        settings: manifests.Settings,
        plan: CropPlan,
        batch_size: int,
        workers: int,
        pool: ThreadPoolExecutor,
        agreement: Agreement | None = None,
    ) -> None:
        self._agreement = agreement
        self._source, self._teacher, self._settings = source, teacher, settings
        self._plan = plan
        self._batch_size, self._workers, self._pool = batch_size, workers, pool
        form = settings.record or settings.vectors
        assert form is not None
        self._format: RecordFormat | FeatureFormat = form.format

    def label(self, members: range, tell: Callable[[int], None]) -> _Part:
        """Label the images at these places; ``tell`` hears after each batch how many crops."""
        part = _Part(self._format.dtype, self._plan.new)
        crops = 0
        for batch in self._batches(self._segments(part, members)):
            logits = self._teacher(batch.images)
            boxes, flips, true = self._plan.recorded(batch.boxes, batch.flips, batch.targets)
            targets = torch.from_numpy(true).to(logits.device)
            if self._agreement is not None:
                self._agreement.add(true, logits.argmax(1).cpu().numpy(), batch.images_begun)
            for some in chunks(len(logits), logits.shape[1]):  # the cells of maps are many
                part.records.append(self._encoded(logits[some], targets[some]))
            part.boxes.append(boxes)
            part.flips.append(flips)
            crops += len(boxes)
            tell(crops)
        return part

    def _encoded(self, answers: Tensor, targets: Tensor) -> NDArray[Any]:
        """The records of logits, or of features, [B, n]."""
        if isinstance(self._format, FeatureFormat):
            return self._format.encode(answers.cpu().numpy())
        return self._format.encode(SoftLabels.from_logits(answers, targets, self._format.k))

    def _segments(self, part: _Part, members: range) -> Iterator[_Segment]:
        decoding = (self._pool.submit(self._decode, member) for member in members)
        for image in ahead(decoding, 2 * self._workers):
            if isinstance(image, Unreadable):
                part.skipped.append(image)
                continue
            image_id = self._source.ids[image.place]
            height, width = image.pixels.shape[:2]
            boxes, flips = self._plan.draw(image_id, height, width)
            target = int(self._source.targets[image.place])
            part.ids.append(image_id)
            part.rows.append((0, image.fingerprint, target, height, width))
            yield _Segment(image.pixels, boxes, flips, target, True)

    def _decode(self, place: int) -> _Decoded | Unreadable:
        image_id = self._source.ids[place]
        if (reason := self._plan.skipped(image_id)) is not None:
            return Unreadable(image_id, reason)
        data = self._source.read(place)
        try:
            with named(image_id, self._source.name):
                pixels = decode(data, exif=self._settings.images.exif)
        except UnreadableImage as error:
            self._plan.check_left_out(image_id, str(error))
            return Unreadable(image_id, str(error))
        if max(pixels.shape[:2]) > MAX_SIDE:
            return Unreadable(image_id, f"a side is longer than {MAX_SIDE} pixels")
        content = fingerprint(data)
        self._plan.check(image_id, content, *pixels.shape[:2])
        return _Decoded(place, pixels, content)

    def _batches(self, segments: Iterator[_Segment]) -> Iterator[_Batch]:
        return ahead((self._pool.submit(self._cut, g) for g in self._grouped(segments)), 2)

    def _grouped(self, segments: Iterator[_Segment]) -> Iterator[list[_Segment]]:
        """Lists of segments of ``batch_size`` crops together, the last one possibly fewer."""
        group: list[_Segment] = []
        free = self._batch_size
        for segment in segments:
            start, count = 0, len(segment.boxes)
            while start < count:
                stop = min(start + free, count)
                taken = slice(start, stop)
                group.append(
                    segment._replace(
                        boxes=segment.boxes[taken], flips=segment.flips[taken], first=start == 0
                    )
                )
                free -= stop - start
                start = stop
                if not free:
                    yield group
                    group, free = [], self._batch_size
        if group:
            yield group

    def _cut(self, group: list[_Segment]) -> _Batch:
        boxes = np.concatenate([s.boxes for s in group])
        flips = np.concatenate([s.flips for s in group])
        targets = np.repeat([s.target for s in group], [len(s.boxes) for s in group])
        images = {size: self._cut_at(size, group, len(boxes)) for size in self._teacher.sizes}
        begun = sum(s.first for s in group)
        return _Batch(images, boxes, flips, targets.astype(np.int64), begun)

    def _cut_at(self, size: int, group: list[_Segment], count: int) -> Tensor:
        images = np.empty((count, size, size, 3), np.uint8)
        at = 0
        for segment in group:
            for box, flip in zip(segment.boxes, segment.flips, strict=True):
                cut(segment.pixels, box, bool(flip), size, out=images[at])
                at += 1
        return torch.from_numpy(images).permute(0, 3, 1, 2)
