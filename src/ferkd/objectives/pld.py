"""PLD: the teacher's ranking of the classes, the truth first, weighted by its probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ferkd.objectives.hard import truth
from ferkd.objectives.sides import check_shapes, stored
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part

_NEVER = -1e30  # stands for -inf, whose differences would be NaN


class Pld(Part):
    """Card: sum over ranks k of a_k (log sum over l >= k of e^z_l - z_k), mean over crops.

    The ranking is the true class, then the others by falling teacher probability; z are the
    student's logits in that order (temperature 1), a_k the teacher's probability at
    ``temperature``. Only stored classes and the truth are ranked: their terms are exact, for the
    order of the others does not matter to them; the others' terms are dropped. Where the label does
    not hold the truth, its weight is the tail's mean. With a weight of 1 on the truth alone this is
    cross-entropy; no hard term is added. Builds [B, C] arrays. Source: Bassam et al., "PLD: A
    Choice-Theoretic List-Wise Knowledge Distillation", 2025.
    """

    needs_truth: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B], all of them known."""
        check_shapes(logits, labels)
        y, z = truth(targets)[:, None], logits.float()
        teacher = labels.targets(self.temperature)
        p = labels.dense(self.temperature)
        key = torch.where(stored(teacher), p, -1.0).scatter_(1, y, 2.0)
        places = min(labels.num_classes, teacher.classes.shape[1] + 1)
        value, order = key.topk(places, dim=1)
        ranked = value >= 0
        weights = p.gather(1, order) * ranked
        chosen = z.gather(1, order)
        left = z.masked_fill(key >= 0, _NEVER).logsumexp(1, keepdim=True)
        suffix = chosen.masked_fill(~ranked, _NEVER).flip(1).logcumsumexp(1).flip(1)
        return (weights * (torch.logaddexp(suffix, left) - chosen)).sum(1).mean()


OBJECTIVE = Pld
