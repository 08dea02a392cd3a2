"""NKD: the true class and the normalised others."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ferkd.objectives.decoupled import split_log, split_p
from ferkd.objectives.hard import hard_term, truth
from ferkd.objectives.sides import sides
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part


class Nkd(Part):
    """Card: ce_weight CE - p_y log q_y - gamma T^2 sum over c != y of p^_c log q^_c.

    p_y and q_y at temperature 1, p^ and q^ the distributions over the other classes alone at
    ``temperature``. Labels as for `ferkd.objectives.dkd.Dkd`. Defaults are the authors' for
    ImageNet; for CIFAR gamma 3.5, temperature 3. Builds [B, C] arrays. Source: Yang et al., "From
    Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023.
    """

    needs_truth: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0.0)
    gamma: float = Field(default=1.5, ge=0.0)
    ce_weight: float = Field(default=1.0, ge=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B], all of them known."""
        y = truth(targets)
        p, log_q = sides(logits, labels)
        own = -(p.gather(1, y[:, None]) * log_q.gather(1, y[:, None]))[:, 0]
        if self.temperature != 1:
            p, log_q = sides(logits, labels, self.temperature)
        _, _, p_hat = split_p(p, y)
        _, _, log_hat = split_log(log_q, y)
        rest = -(p_hat * log_hat).sum(1)
        loss = (own + self.gamma * self.temperature**2 * rest).mean()
        return loss + self.ce_weight * hard_term(logits, y)


OBJECTIVE = Nkd
