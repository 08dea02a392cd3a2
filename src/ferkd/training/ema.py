"""An exponential moving average of a model's state."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def ema_decay(decay: float, step: int) -> float:
    """The decay of update ``step`` (0-based): min(decay, (1 + step) / (10 + step)).

    The warm-up lets short runs forget their first, untrained weights. timm's own has other curves.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema(ModelEmaV3):
    """A copy of ``model`` whose floating-point parameters and buffers are moving averages.

    Other buffers (counters) are copied as they are. ``module`` is ready for evaluation;
    ``update(model, step)`` takes in the model's state after optimiser step ``step`` (0-based).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must lie in [0, 1)")
        super().__init__(model, decay)
        self.module.requires_grad_(False)

    def get_decay(self, step: int | None = None) -> float:
        """The decay of update ``step``; the final one without."""
        return self.decay if step is None else ema_decay(self.decay, step)
