"""The labelling pass: every image's crops through the teacher once, into a label store.

Work is done part by part: by one process alone, or by several that share the parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ferkd.images import ImageSource, open_images
from ferkd.labelling.answering import Given
from ferkd.labelling.passes import PartLabeller, Pass, check_skipped, shared_writer
from ferkd.labelling.settings import Labelling
from ferkd.store.reader import LabelStore
from ferkd.store.sharing import Shard
from ferkd.store.unfinished import begun_settings, has_labels
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError
from ferkd.system.threads import workers as worker_threads


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


Report = Callable[[Progress], None]


def label(
    images: str | Path | ImageSource,
    teacher: Given,
    out: str | Path,
    settings: Labelling | None = None,
    *,
    resume: bool = False,
    recheck: bool = False,
    overwrite: bool = False,
    progress: Report | None = None,
    **options: Any,
) -> LabelStore:
    """Label random crops of every image with a teacher; returns the finished store.

    - ``images`` is a folder or a source, ``out`` a new folder.
    - ``teacher`` is a spec (see ferkd.models.specs) or a module, or several as ``A,B@0.5``
      (ferkd.models.committee).
    - ``settings`` and ``options`` (its fields by name, which take precedence) are those of
      :class:`ferkd.labelling.settings.Labelling`:
      ``label(images, teacher, out, crops=20, top_k=5)``.
    - ``resume`` continues a killed run. With ``recheck`` the images labelled so far are read again.
      Those that changed since, or could not be read, are labelled anew, with their parts.
    - ``boxes_from`` is a store of the same images, whose crops are labelled. Its count,
      distribution and seed are taken over.
    - ``add_to`` is a store made with the same settings and fewer crops, which stays untouched. Its
      labels are taken over as they are, and only the new crops are shown to the teacher. ``out`` is
      what ``crops`` from the start would have given, but for the float rounding of another batch
      composition.

    Images that cannot be read are listed in the store and left out. ``boxes_from`` and ``add_to``
    pass over the images that their store left out, and refuse images other than those it labelled.
    Raises InputError.
    """
    wanted = replace(settings or Labelling(), **options)
    job = Pass.prepare(images, teacher, out, wanted, begun=resume and pass_begun(out, wanted))
    with job.writer(out, resume=resume, overwrite=overwrite) as writer:
        if recheck:
            writer.drop_changed(job.source)
        _work(job, writer, progress)
        check_skipped(writer, wanted)
        return writer.finish()


def label_shard(
    images: str | Path | ImageSource,
    teacher: Given,
    out: str | Path,
    shard: Shard,
    settings: Labelling | None = None,
    *,
    progress: Report | None = None,
    **options: Any,
) -> LabelStore | None:
    """Label one process's shard of a store, or of a signal more, that several write together.

    All are given the same images, teacher and settings, as in :func:`label`. An unfinished store is
    continued. Parts of shards whose process has died are labelled too. Returns the finished store,
    or None where parts are left to other processes: the last of them finishes it. Raises
    InputError.
    """
    wanted = on_own_device(replace(settings or Labelling(), **options))
    job = Pass.prepare(images, teacher, out, wanted, begun=pass_begun(out, wanted))
    with job.shared_writer(out, shard) as writer:
        _work(job, writer, progress)
        if writer.missing():
            return None
        check_skipped(writer, wanted)
        return writer.finish()


class PartsMissing(InputError):
    """Parts of a store are not labelled yet."""


def finish(
    images: str | Path | ImageSource,
    out: str | Path,
    settings: Labelling | None = None,
) -> LabelStore:
    """Join the parts that several processes have written into the finished store, or signal.

    Of ``settings`` count ``targets``, ``into`` and ``signal``. Raises InputError where parts are
    missing, or for other images.
    """
    wanted = settings or Labelling()
    source = open_images(images, targets=wanted.targets)
    begun = begun_settings(out, wanted.name if wanted.into else None)
    if begun.images.listing != listing(source.ids):
        raise InputError(f"the images of {source.name} are not those that {out} was begun with")
    with shared_writer(out, begun, len(source), wanted, Shard()) as writer:
        if missing := writer.missing():
            raise PartsMissing(
                f"{len(missing)} of the {writer.parts} parts of {out} are not labelled yet (first: "
                f"{missing[0]}); run the shards that were to write them again"
            )
        return writer.finish()


def on_own_device(wanted: Labelling) -> Labelling:
    """For one of several processes of a machine: the device of its place among them."""
    if wanted.device != "auto" or not torch.cuda.is_available():
        return wanted
    place = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return replace(wanted, device=f"cuda:{place}")


def pass_begun(out: str | Path, wanted: Labelling) -> bool:
    """Whether labels of this pass are written already."""
    return has_labels(out, wanted.name if wanted.into else None)


def _work(job: Pass, writer: StoreWriter, progress: Report | None) -> None:
    """Label the parts that are the writer's to write."""
    with worker_threads(job.wanted.workers) as pool:
        labelling = PartLabeller(job, writer, pool)
        total, crops, begun = len(job.source), 0, time.perf_counter()
        done = total - sum(len(writer.part_range(number)) for number in writer.missing())

        def tell(crops_of_part: int) -> None:
            if progress:
                elapsed, images = time.perf_counter() - begun, done + crops_of_part // job.shown.new
                progress(Progress(images, total, crops + crops_of_part, elapsed, labelling.parts))

        tell(0)
        for number in writer.claimed():
            crops += labelling.write(number, tell)
            done += len(writer.part_range(number))
            tell(0)
        labelling.close()
