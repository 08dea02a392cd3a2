"""OFA-KD's target loss: how far the truth's share is emphasised depends on the teacher."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from ferkd.objectives.hard import hard_term, truth
from ferkd.objectives.sides import sides
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part


class Ofa(Part):
    """Card: ce_weight CE - kd_weight sum over c of ((p_c + m_c)^eps - m_c) log q_c.

    m is the one-hot of the truth, p and q at ``temperature``. With ``eps`` 1 the second term is
    soft cross-entropy; above 1 the other classes count less and the truth more, the more so the
    surer the teacher is of it. The authors use 1.5 for ImageNet and 1 for CIFAR. This is the loss
    of the final logits; the paper's exits after inner stages are not part of it. The classes not
    stored share their tail evenly. Builds [B, C] arrays. Source: Hao et al., "One-for-All: Bridge
    the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023.
    """

    needs_truth: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0.0)
    eps: float = Field(default=1.5, ge=1.0)
    ce_weight: float = Field(default=1.0, ge=0.0)
    kd_weight: float = Field(default=1.0, ge=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B], all of them known."""
        y = truth(targets)
        p, log_q = sides(logits, labels, self.temperature)
        m = one_hot(y, labels.num_classes)
        wanted = (p + m) ** self.eps - m
        loss = -self.kd_weight * (wanted * log_q).sum(1).mean()
        return loss + self.ce_weight * hard_term(logits, y)


OBJECTIVE = Ofa
