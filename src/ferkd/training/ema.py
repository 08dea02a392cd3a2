"""An exponential moving average of a model's state.

By hand, for timm's `ModelEmaV3` and torch's `AveragedModel` were tried (docs/lab-log.md). The first
makes a random generator on the device for weights in bf16, which not every device has, and costs a
third more an update; the second takes the first state whole and counts in its checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def ema_decay(decay: float, step: int) -> float:
    """The decay of update ``step`` (0-based): min(decay, (1 + step) / (10 + step)).

    The warm-up lets short runs forget their first, untrained weights.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A copy of ``model`` whose floating-point parameters and buffers are moving averages.

    Other buffers (counters) are copied as they are. ``module`` is ready for evaluation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must lie in [0, 1)")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(_state(self.module), _state(model), strict=True))
        self._averaged = _transpose([pair for pair in pairs if pair[1].is_floating_point()])
        self._copied = _transpose([pair for pair in pairs if not pair[1].is_floating_point()])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's state after optimiser step ``step`` (0-based)."""
        ours, theirs = self._averaged
        torch._foreach_lerp_(ours, theirs, 1 - ema_decay(self.decay, step))
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _transpose(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [ours for ours, _ in pairs], [theirs.detach() for _, theirs in pairs]
