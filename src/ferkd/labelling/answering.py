"""Who answers to the crops of a pass, and the form in which its answers are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ferkd.images import ImageSource
from ferkd.labelling.agreement import Agreement, agreement_to_keep, probe
from ferkd.labelling.features import FeatureTeacher
from ferkd.labelling.maps import MapTeacher, map_teacher
from ferkd.labelling.settings import Labelling, default_batch
from ferkd.models.committee import Committee, load_committee
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.store import manifest as manifests
from ferkd.store.features import FeatureFormat
from ferkd.store.reader import LabelStore
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError

Answers = Committee | MapTeacher | FeatureTeacher
Given = str | Path | nn.Module | Teacher | Committee


def answering(
    teacher: Given, wanted: Labelling, source: ImageSource, *, begun: bool
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


def form_of(answers: Answers, wanted: Labelling) -> dict[str, Any]:
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


def batch_of(answers: Answers, wanted: Labelling, base: LabelStore | None) -> int:
    """The batch size asked for, or of the store that crops are added to, or the device's."""
    if wanted.batch_size is not None:
        return wanted.batch_size
    if wanted.add_to is not None and base is not None:
        recorded = base.settings.teacher.get("batch_size")
        if isinstance(recorded, int) and recorded > 0:
            return recorded
    first = answers.members[0] if isinstance(answers, Committee) else answers.teacher
    return default_batch(first.device.type, max(answers.sizes))
