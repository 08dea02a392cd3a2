"""Ordinary training: cross-entropy with the ground truth, mixed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import cross_entropy

from ferkd.objectives import soft_cross_entropy

if TYPE_CHECKING:
    from ferkd.training.trainer import View


@dataclass(frozen=True)
class HardLabels:
    """Cross-entropy with ``label_smoothing``; mixed targets come as the view's labels."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The mean loss of ``logits`` [B, C]; the view's labels, if any, are mixed hard ones."""
        if view.labels is None:
            return cross_entropy(logits, view.targets, label_smoothing=self.label_smoothing)
        return soft_cross_entropy(logits, view.labels)
