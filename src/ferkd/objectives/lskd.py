"""Logit standardisation: the divergence of z-scored logits, whatever their scale."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ferkd.objectives.hard import hard_term
from ferkd.objectives.sides import check_shapes, forward_kl
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

_EPSILON = 1e-7  # the authors', added to the deviation
_FLOOR = -80.0


class Lskd(Part):
    """Card: ce_weight CE + kd_weight T^2 KL(p || q), both softmaxes of z-scored logits / T.

    Each row of logits less its mean, over its deviation (n - 1) + 1e-7, for both sides; the
    teacher's log-probabilities do as well as its logits, for a constant cancels. The z-score is
    one of all classes, so labels with fewer raise InputError. Defaults are the authors'. Source:
    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """

    temperature: float = Field(default=2.0, gt=0.0)
    ce_weight: float = Field(default=0.1, ge=0.0)
    kd_weight: float = Field(default=9.0, ge=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B] may be None where ``ce_weight`` is 0."""
        check_shapes(logits, labels)
        if labels.k < labels.num_classes:
            held, all_of_them = labels.k - labels.truth_slot, labels.num_classes
            raise InputError(
                f"lskd needs the teacher's answer for all {all_of_them} classes, these labels hold "
                f"{held}; label with --top-k {all_of_them}, use a live teacher (method kd), or "
                "another objective"
            )
        z = labels.dense().log().clamp_min(_FLOOR)
        p = (standardised(z) / self.temperature).softmax(1)
        log_q = (standardised(logits.float()) / self.temperature).log_softmax(1)
        loss = self.kd_weight * self.temperature**2 * forward_kl(p, log_q)
        if self.ce_weight > 0:
            loss = loss + self.ce_weight * hard_term(logits, targets)
        return loss


def standardised(z: Tensor) -> Tensor:
    """(z - mean) / (deviation + 1e-7) of each row of [B, C]; the deviation is that of a sample."""
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + _EPSILON)


OBJECTIVE = Lskd
