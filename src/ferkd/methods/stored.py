"""Training from labels that were stored before: FKD, FerKD, ReLabel, SSLD and MEAL V2."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ferkd.objectives import Objective
from ferkd.store.soft import SoftLabels

if TYPE_CHECKING:
    from ferkd.training.trainer import View

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
