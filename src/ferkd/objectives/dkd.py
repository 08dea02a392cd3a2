"""DKD: the true class and the others apart, each with a weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ferkd.objectives.decoupled import split_log, split_p
from ferkd.objectives.hard import hard_term, truth
from ferkd.objectives.sides import sides
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part


class Dkd(Part):
    """Card: ce_weight CE + T^2 (alpha TCKD + beta NCKD), sum over classes, mean over crops.

    TCKD = KL of (p_y, 1 - p_y) from (q_y, 1 - q_y), NCKD = KL between the distributions over the
    other classes alone; KL(p || q) = TCKD + (1 - p_y) NCKD. p_y is exact where the label holds the
    true class (stores of ours do), the classes not stored share their tail evenly; temperatures as
    in `SoftLabels.targets`. The authors' warm-up of the second part is left out. Defaults are the
    authors' for ImageNet; for CIFAR alpha 1, beta 8, temperature 4. Builds [B, C] arrays. Source:
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    """

    needs_truth: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0.0)
    alpha: float = Field(default=1.0, ge=0.0)
    beta: float = Field(default=0.5, ge=0.0)
    ce_weight: float = Field(default=1.0, ge=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B], all of them known."""
        y = truth(targets)
        p, log_q = sides(logits, labels, self.temperature)
        (p_y, p_rest, p_hat), (log_y, log_rest, log_hat) = split_p(p, y), split_log(log_q, y)
        tckd = _cross(p_y, log_y) + _cross(p_rest, log_rest)
        nckd = _cross(p_hat, log_hat).sum(1)
        loss = self.temperature**2 * (self.alpha * tckd + self.beta * nckd).mean()
        return loss + self.ce_weight * hard_term(logits, y)


def _cross(p: Tensor, log_q: Tensor) -> Tensor:
    return torch.xlogy(p, p) - p * log_q


OBJECTIVE = Dkd
