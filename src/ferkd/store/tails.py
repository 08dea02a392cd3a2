"""The tail of a sparse soft label: what the classes that are not stored have together.

The tail's log-sum-exp is recorded at three temperatures; between them it is interpolated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ferkd.system.errors import InputError

TAIL_TEMPERATURES = (1.0, 2.0, 4.0)


def mean(log_mass: Tensor, log_probs: Tensor, num_classes: int) -> Tensor:
    """exp(log_mass) [B] spread over each row's unstored classes; 0 without any. [B]"""
    unstored = _unstored(log_probs, num_classes)
    return torch.where(unstored > 0, log_mass.exp() / unstored.clamp_min(1), 0.0)


def mass(tail: Tensor, temperature: float, log_probs: Tensor, num_classes: int) -> Tensor:
    """log of the sum of p^(1/T) over the unstored classes, [B], of ``tail`` [B, 3].

    Between the recorded temperatures the cubic in 1/T through the three recorded values and the
    exact one at 1/T = 0 (the log of the number of unstored classes) is used. Raises InputError,
    where the tail lies on the CPU, for a temperature at which it is not known.
    """
    if temperature in TAIL_TEMPERATURES:
        found = tail[:, TAIL_TEMPERATURES.index(temperature)]
    elif temperature < 1:
        found = tail[:, 0].masked_fill(tail[:, 0] != -math.inf, math.nan)
    else:
        found = _interpolated(tail, 1.0 / temperature, _unstored(log_probs, num_classes))
    # On an accelerator the question would wait for it; there a missing tail shows as a loss of
    # NaN, and training asks of the first labels on the CPU before it begins.
    if found.device.type != "cpu" or not bool(torch.isnan(found).any()):
        return found
    if temperature < 1:
        raise InputError(
            f"temperature {temperature} is below 1, where a label of some classes does not tell "
            "its tail; use a temperature of 1 or more, or store all classes"
        )
    raise InputError(
        f"temperature {temperature} asks for the tail of these labels at that temperature, which "
        "their record does not hold (imported labels do not); use temperature 1, tail "
        '"renorm", or label again'
    )


def _unstored(log_probs: Tensor, num_classes: int) -> Tensor:
    """The number of classes that each row of slots [B, k] does not store, int64 [B]."""
    return num_classes - torch.isfinite(log_probs).sum(1)


def _interpolated(tail: Tensor, beta: float, unstored: Tensor) -> Tensor:
    knots = [0.0, *(1 / t for t in TAIL_TEMPERATURES)]
    values = torch.cat([unstored.clamp_min(1).log()[:, None], tail], 1)
    found = torch.zeros_like(tail[:, 0])
    for i, knot in enumerate(knots):
        others = [other for other in knots if other != knot]
        found = found + values[:, i] * math.prod((beta - o) / (knot - o) for o in others)
    return found.masked_fill(tail[:, 0] == -math.inf, -math.inf)
