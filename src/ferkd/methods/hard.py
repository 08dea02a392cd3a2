"""Ordinary training: cross-entropy with the ground truth, mixed or not."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ferkd.methods.base import ONE_CROP, LossSettings, Method, Setup, View
from ferkd.objectives import soft_cross_entropy


class Settings(LossSettings):
    """``label_smoothing``: the share of the mass that hard labels spread over all classes."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)


@dataclass(frozen=True)
class HardLabels:
    """Cross-entropy with ``label_smoothing``; mixed targets come as the view's labels."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The mean loss of ``logits`` [B, C]; the view's labels, if any, are mixed hard ones."""
        if view.labels is None:
            return cross_entropy(logits, view.targets, label_smoothing=self.label_smoothing)
        return soft_cross_entropy(logits, view.labels)


def _make(settings: Settings, setup: Setup) -> HardLabels:
    return HardLabels(settings.label_smoothing)


METHOD = Method(
    name="hard",
    card=__doc__,
    make=_make,
    settings=Settings,
    truth=True,
    defaults={"data": ONE_CROP},
)
