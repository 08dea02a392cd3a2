"""Teacher and student as distributions over the same outcomes, for losses that need both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ferkd.store.soft import SoftLabels, SparseTargets

Tail = Literal["uniform", "renorm", "bucket", "support"]

_NEVER = -1e30  # stands for -inf where 0 * -inf would be NaN
_FLOOR = -80.0  # the least log-probability of a teacher, as stored labels have it


def sides(
    logits: Tensor, labels: SoftLabels, temperature: float = 1.0, tail: Tail = "uniform"
) -> tuple[Tensor, Tensor]:
    """(p, log q) of the teacher and the student, float32 [B, C], or [B, C + 1] for "bucket".

    ``logits`` [B, C] of the student, ``labels`` of the teacher; both at ``temperature``. ``tail``:
    what becomes of the classes not stored. "uniform" and "renorm" as in `SoftLabels.targets`;
    "bucket" puts them together into one outcome on both sides, the last column, which needs
    nothing but the tail's mass; "support" leaves them out on both sides. Outcomes that are left
    out have p = 0 and log q = -1e30. Raises InputError as `SoftLabels.targets` does and
    ValueError when the shapes do not fit.
    """
    check_shapes(logits, labels)
    z = logits.float() / temperature
    if tail in ("uniform", "renorm"):
        return labels.dense(temperature, _plain(tail)), z.log_softmax(1)
    if tail == "support":
        targets = labels.targets(temperature, "renorm")
        p = labels.dense(temperature, "renorm")
        return p, z.masked_fill(~stored(targets), _NEVER).log_softmax(1)
    targets = labels.targets(temperature, "uniform")
    inside = stored(targets)
    p, log_q = labels.dense(temperature), z.log_softmax(1)
    rest = targets.base * (~inside).sum(1)
    log_rest = log_q.masked_fill(inside, _NEVER).logsumexp(1)
    return (
        torch.cat([p.masked_fill(~inside, 0.0), rest[:, None]], 1),
        torch.cat([log_q.masked_fill(~inside, _NEVER), log_rest[:, None]], 1),
    )


def forward_kl(p: Tensor, log_q: Tensor) -> Tensor:
    """Mean over the rows of KL(p || q) = sum p (log p - log q); a scalar."""
    return (torch.xlogy(p, p) - p * log_q).sum(1).mean()


def reverse_kl(p: Tensor, log_q: Tensor) -> Tensor:
    """Mean over the rows of KL(q || p); p is at least e^-80, as stored labels are."""
    return (log_q.exp() * (log_q - p.log().clamp_min(_FLOOR))).sum(1).mean()


def stored(targets: SparseTargets) -> Tensor:
    """Which classes have a value of their own, bool [B, C]."""
    marks = targets.weights.new_zeros(len(targets.base), targets.num_classes)
    return marks.scatter_add_(1, targets.classes, (targets.weights != 0).to(marks.dtype)) > 0


def check_shapes(logits: Tensor, labels: SoftLabels) -> None:
    """ValueError unless ``logits`` are [B, C] for B labels over C classes."""
    if logits.ndim != 2 or logits.shape != (len(labels), labels.num_classes):
        raise ValueError(
            f"logits of shape {list(logits.shape)} do not fit {len(labels)} labels over "
            f"{labels.num_classes} classes"
        )


def _plain(tail: Tail) -> Literal["uniform", "renorm"]:
    return "renorm" if tail == "renorm" else "uniform"
