"""What the methods share that train from labels stored before."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ferkd.loading.map_crops import kept_classes
from ferkd.methods.base import Setup, Taught, View
from ferkd.objectives import Objective
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError

_TRIED = 16  # images, and crops of each, that the loss is tried on before a run

LabelKind = Literal["soft", "hard", "smoothing", "renorm"]


@dataclass(frozen=True)
class StoredLabels:
    """An ``objective(logits, labels, targets)`` of the view's labels, taken as ``kind`` says."""

    objective: Objective
    kind: LabelKind = "soft"

    @property
    def whole_batch(self) -> bool:
        return bool(getattr(self.objective, "whole_batch", False))

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The loss of ``logits`` [B, C] against the view's stored labels."""
        assert view.labels is not None
        return self.objective(logits, as_kind(view.labels, self.kind), view.targets)


class StoredSettings(Taught):
    """Settings of a method that trains on the stored labels of crops.

    ``label_temperature`` T makes softmax(z / T) of each stored label, "fit" the T that makes the
    labels likeliest for the ground truth; ``truth_share`` of every label is the ground truth.
    """

    label_temperature: Annotated[float, Field(gt=0)] | Literal["fit"] = 1.0
    truth_share: float = Field(default=0.0, ge=0, le=1)


def stored(settings: Taught, setup: Setup, kind: LabelKind = "soft") -> StoredLabels:
    """The loss of stored labels taken as ``kind`` says. Raises InputError where the objective of
    ``settings`` cannot use the labels that there are."""
    objective = settings.build()
    check_truth(settings.objective, objective, setup)
    loss = StoredLabels(objective, kind)
    _try(settings.objective, loss, setup)
    return loss


def as_kind(labels: SoftLabels, kind: LabelKind) -> SoftLabels:
    """FKD's label kinds, made of stored labels; mixed labels are turned half by half.

    "soft": as stored. "hard": all mass on the teacher's most probable class. "smoothing": its
    probability, the rest spread evenly over the other classes. "renorm": the stored classes alone,
    divided by their sum. Source: Shen and Xing, FKD, ECCV 2022 (label quantisation).
    """
    if kind == "soft":
        return labels
    if labels.partner is not None and labels.share is not None:
        whole = replace(labels, partner=None, share=None)
        return as_kind(whole, kind).mixed(as_kind(labels.partner, kind), labels.share)
    if kind == "hard":
        return SoftLabels.hard(labels.top1(), labels.num_classes)
    if kind == "smoothing":
        return labels.top(1)
    log_probs = labels.log_probs
    if labels.truth_slot:  # re-norm keeps the teacher's top classes alone
        log_probs = torch.cat([log_probs[:, :-1], torch.full_like(log_probs[:, -1:], -math.inf)], 1)
    total = log_probs.logsumexp(1)
    true = labels.true_log_prob
    return replace(
        labels,
        log_probs=log_probs - total[:, None],
        tail=torch.full_like(labels.tail, -math.inf),
        true_log_prob=None if true is None else true - total,
    )


def check_truth(name: str, objective: Objective, setup: Setup) -> None:
    if setup.unlabelled and getattr(objective, "needs_truth", False):
        raise InputError(
            f"loss.objective {name} needs the true class of every image, which "
            f"{setup.unlabelled} of {setup.images} images do not have; use soft_ce, kl or jeffreys"
        )


def _try(name: str, stored: StoredLabels, setup: Setup) -> None:
    """Let an objective that cannot use these labels say so before the run begins."""
    store = setup.store
    if store is None:
        return
    if store.geometry.crops.is_map:
        _try_pooled(name, stored, setup)
        return
    images = np.unique(np.linspace(0, len(store) - 1, _TRIED).astype(np.int64))
    crops = np.arange(min(_TRIED, store.crops_per_image))
    rows, crops = (both.reshape(-1) for both in np.meshgrid(images, crops, indexing="ij"))
    labels = as_kind(store.labels(rows, crops), stored.kind)
    targets = torch.from_numpy(store.targets[rows].astype(np.int64))
    stored.objective(torch.zeros(len(rows), setup.num_classes), labels, targets)


def _try_pooled(name: str, stored: StoredLabels, setup: Setup) -> None:
    """The same of labels as they are pooled from maps, which keep no more than some classes."""
    classes, kept = setup.num_classes, kept_classes(setup.num_classes)
    targets = torch.zeros(2, dtype=torch.int64)
    logits = torch.zeros(2, classes)
    labels = SoftLabels.from_logits(logits, targets, kept).with_truth(targets)
    try:
        stored.objective(logits, labels, targets)
    except InputError as error:
        if kept == classes:
            raise
        raise InputError(
            f"loss.objective {name} cannot use the labels of method relabel, which keeps the "
            f"{kept} most probable of {classes} classes of a crop, whatever the maps hold "
            f"({str(error).partition(';')[0]}); use another objective or other loss.options, or "
            "a live teacher (method kd)"
        ) from error
