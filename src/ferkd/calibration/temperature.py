"""The temperature that makes a store's labels likeliest for the ground truth.

At b = 1 / T a label is softmax(b z), so its negative log-likelihood of the truth y is convex in b;
its slope is E[z] - z_y, E over the label at b. Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017, fit T so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ferkd.store.reader import LabelStore
from ferkd.store.soft import SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES

_MOST_CROPS = 50_000  # read at most, spread evenly over the images
_COLDEST, _HOTTEST = 0.05, 20.0
_HALVINGS = 50
_STEP = 1e-4  # of b, for the curvature


@dataclass(frozen=True)
class FittedTemperature:
    """``value`` with its 95 % interval ``low`` to ``high`` over ``images`` drawn anew (the crops of
    an image count together), from ``crops`` labels; ``nll_at_1`` and ``nll`` are the labels' mean
    negative log-likelihoods of the truth, in nats, at temperature 1 and at ``value``.

    Top-k labels know no temperature below 1: there ``value`` may be 1 because it ends there.
    """

    value: float
    low: float
    high: float
    nll: float
    nll_at_1: float
    crops: int
    images: int


def fit_temperature(store: LabelStore) -> FittedTemperature | None:
    """The likeliest temperature of the labels; None where no image has a ground truth, or the
    labels' record does not tell their tail at other temperatures (imported ones)."""
    labelled = np.flatnonzero(store.targets >= 0)
    per_image = store.crops_per_image
    rows = labelled[:: max(1, -(-len(labelled) * per_image // _MOST_CROPS))]
    if len(rows) == 0:
        return None
    pairs = np.repeat(rows, per_image), np.tile(np.arange(per_image), len(rows))
    targets = torch.from_numpy(store.targets[pairs[0]].astype(np.int64))
    images = torch.from_numpy(np.repeat(np.arange(len(rows)), per_image))
    return fit(store.labels(*pairs), targets, images)


def fit(labels: SoftLabels, targets: Tensor, images: Tensor) -> FittedTemperature | None:
    """The same of labels whose classes are ``targets`` and whose images ``images``, int64 [B]."""
    logs = labels.log_probs.double()
    hit = (labels.classes == targets[:, None]) & torch.isfinite(logs)
    truth = logs.masked_fill(~hit, 0.0).sum(1)
    outside = ~hit.any(1)
    if labels.true_log_prob is not None:
        truth = torch.where(outside, labels.true_log_prob.double(), truth)
        outside &= ~torch.isfinite(truth)
    tail = _tail(labels.tail.double(), labels.num_classes - torch.isfinite(logs).sum(1))
    known = ~outside
    if bool(torch.isnan(tail[known]).any()) or not bool(known.any()):
        return None
    logs, truth, tail, images = logs[known], truth[known], tail[known], images[known]
    has_tail = torch.isfinite(labels.tail[known, 0])
    coldest = 1.0 if bool(has_tail.any()) else 1 / _COLDEST

    def parts(b: float) -> tuple[Tensor, Tensor]:
        """The negative log-likelihood of each label at b and its slope, [N] each."""
        scaled = logs * b
        mass = (tail * torch.tensor([b**i for i in range(4)])).sum(1)
        slope = (tail * torch.tensor([i * b ** max(i - 1, 0) for i in range(4)])).sum(1)
        mass = mass.masked_fill(~has_tail, -math.inf)
        total = torch.logaddexp(scaled.logsumexp(1), mass)
        p = (scaled - total[:, None]).exp()
        mean = (p * logs.nan_to_num(neginf=0.0)).sum(1) + (mass - total).exp() * slope
        return total - b * truth, mean - truth

    low, high = 1 / _HOTTEST, coldest
    if float(parts(high)[1].mean()) <= 0:  # likeliest at that end, and then exactly there
        low = high
    for _ in range(_HALVINGS):  # the slope rises with b
        middle = (low + high) / 2
        low, high = (low, middle) if float(parts(middle)[1].mean()) > 0 else (middle, high)
    b = (low + high) / 2
    slopes = torch.zeros(int(images.max()) + 1, dtype=torch.float64)
    slopes.index_add_(0, images, parts(b)[1])
    curve = (parts(b + _STEP)[1].sum() - parts(b - _STEP)[1].sum()) / (2 * _STEP)
    deviation = float(slopes.square().sum().sqrt() / curve.clamp_min(1e-12))
    ends = (min(b + 1.96 * deviation, coldest), max(b - 1.96 * deviation, 1 / _HOTTEST))
    return FittedTemperature(
        value=1 / b,
        low=1 / ends[0],
        high=1 / ends[1],
        nll=float(parts(b)[0].mean()),
        nll_at_1=float(parts(1.0)[0].mean()),
        crops=len(logs),
        images=len(images.unique()),
    )


def _tail(masses: Tensor, unstored: Tensor) -> Tensor:
    """The tail's log mass as a cubic in b, its coefficients [N, 4]: through the recorded masses
    [N, 3] and, at b = 0, the log of the number of classes ``unstored`` [N]."""
    knots = torch.tensor([0.0, *(1 / t for t in TAIL_TEMPERATURES)], dtype=torch.float64)
    values = torch.cat([unstored.clamp_min(1).double().log()[:, None], masses], 1)
    empty = masses[:, :1] == -math.inf
    solved = torch.linalg.solve(torch.vander(knots, increasing=True), values.nan_to_num(
        nan=math.nan, neginf=0.0).T).T  # fmt: skip
    return solved.masked_fill(empty, 0.0)
