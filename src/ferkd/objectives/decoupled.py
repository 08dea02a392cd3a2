"""A distribution as the true class and the others apart, for DKD and NKD."""

from __future__ import annotations

from torch import Tensor

from ferkd.objectives.hard import others

_NEVER = -1e30  # stands for -inf where 0 * -inf would be NaN
_LEAST = 1e-30


def split_p(p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_y [B], the others' mass [B], and their own distribution [B, C] with 0 at y."""
    rest = p.masked_fill(~others(p, targets), 0.0)
    mass = rest.sum(1)
    return p.gather(1, targets[:, None])[:, 0], mass, rest / mass.clamp_min(_LEAST)[:, None]


def split_log(log_q: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of log-probabilities, as logarithms; -1e30 at y in the last."""
    rest = log_q.masked_fill(~others(log_q, targets), _NEVER)
    mass = rest.logsumexp(1)
    return log_q.gather(1, targets[:, None])[:, 0], mass, rest - mass[:, None]
