"""DIST: match the correlations of the predictions, within rows and within classes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ferkd.objectives.hard import hard_term
from ferkd.objectives.sides import check_shapes
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part

_EPSILON = 1e-8  # the authors', added to the product of the lengths


class Dist(Part):
    """Card: ce_weight CE + T^2 (beta inter + gamma intra).

    inter = 1 - Pearson's correlation of p and q within a row, mean over the rows; intra = 1 - that
    of a class along the batch, mean over all classes. Rows without ground truth have no hard term.
    The classes not stored share their tail evenly, so columns of rare classes are constant or
    nearly so and intra is noisy on small batches (below about 128 rows) and top-k labels. Builds
    [B, C] arrays. Source: Huang et al., "Knowledge Distillation from a Stronger Teacher",
    NeurIPS 2022.
    """

    whole_batch: ClassVar[bool] = True  # a class's correlation runs along it

    temperature: float = Field(default=1.0, gt=0.0)
    beta: float = Field(default=1.0, ge=0.0)
    gamma: float = Field(default=1.0, ge=0.0)
    ce_weight: float = Field(default=1.0, ge=0.0)

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` int64 [B] may be None where ``ce_weight`` is 0."""
        check_shapes(logits, labels)
        q = (logits.float() / self.temperature).softmax(1)
        p = labels.dense(self.temperature)
        inter, intra = uncorrelated(q, p), uncorrelated(q.T, p.T)
        loss = self.temperature**2 * (self.beta * inter + self.gamma * intra)
        if self.ce_weight > 0:
            loss = loss + self.ce_weight * hard_term(logits, targets)
        return loss


def uncorrelated(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the rows of 1 - Pearson's correlation of ``a`` and ``b`` [n, d]; a scalar."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # As the product of the lengths, but with a gradient where a row is constant.
    lengths = (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-30).sqrt()
    return (1 - (a * b).sum(1) / (lengths + _EPSILON)).mean()


OBJECTIVE = Dist
