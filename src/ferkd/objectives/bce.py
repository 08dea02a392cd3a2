"""Binary cross-entropy: each class a question of its own."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ferkd.objectives.sides import check_shapes
from ferkd.store.soft import SoftLabels, Tail
from ferkd.system.settings import Part


class Bce(Part):
    """Card: -sum over classes of p log s(z) + (1 - p) log(1 - s(z)), mean over crops.

    s is the logistic function of the student's logits, p the teacher's softmax probabilities;
    ``threshold`` makes them 1 above it and 0 elsewhere. ``mean_classes`` divides by the number of
    classes, as timm does by default. ``tail`` as in `SoftLabels.targets`. Builds [B, C] arrays.
    Source: Wightman, Touvron and Jegou, "ResNet strikes back", 2021.
    """

    threshold: float | None = Field(default=None, ge=0.0, lt=1.0)
    mean_classes: bool = False
    tail: Tail = "uniform"

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` is not used."""
        check_shapes(logits, labels)
        p = labels.dense(tail=self.tail)
        if self.threshold is not None:
            p = (p > self.threshold).float()
        loss = binary_cross_entropy_with_logits(logits.float(), p, reduction="mean")
        return loss if self.mean_classes else loss * labels.num_classes


OBJECTIVE = Bce
