"""Hinton's distillation: cross-entropy with the truth, and the divergence from the teacher."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ferkd.objectives.hard import hard_term
from ferkd.objectives.sides import Tail, forward_kl, sides
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part


class Kl(Part):
    """Card: ce_weight CE(q, y) + kd_weight T^2 KL(p_T || q_T), sum over classes, mean over crops.

    ``temperature`` T softens both sides of the second term; T^2 keeps its gradient's size. Rows
    without ground truth (target -1) have no first term. ``tail``: what becomes of the classes not
    stored; see `sides`. At T other than 1 a top-k label's tail has the mass that was recorded
    there (exact at 2 and 4, interpolated between and beyond), its inner shape is even; labels
    without that record (imported ones), and T below 1, raise InputError, for an invented tail
    would take over the target: "support" and "renorm" do without it. Builds [B, C] arrays. Source:
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; the default
    weights are those of mdistiller for ImageNet.
    """

    temperature: float = Field(default=1.0, gt=0.0)
    ce_weight: float = Field(default=0.5, ge=0.0)
    kd_weight: float = Field(default=0.5, ge=0.0)
    tail: Tail = "uniform"

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B] may be None where ``ce_weight`` is 0."""
        loss = self.kd_weight * self.distance(logits, labels)
        if self.ce_weight > 0:
            loss = loss + self.ce_weight * hard_term(logits, targets)
        return loss

    def distance(self, logits: Tensor, labels: SoftLabels) -> Tensor:
        """T^2 KL(p_T || q_T), mean over the rows."""
        p, log_q = sides(logits, labels, self.temperature, self.tail)
        return self.temperature**2 * forward_kl(p, log_q)


OBJECTIVE = Kl
