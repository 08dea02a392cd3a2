"""What a crop's label becomes: replaced by a softened hard one, or blended with it.

Both calibrations of :mod:`ferkd.calibration.regions` end here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import IntEnum

import torch
from torch import Tensor

from ferkd.store.soft import LOWEST, SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES


class Region(IntEnum):
    """What becomes of a crop's label."""

    DISCARDED = 0
    HARD = 1
    IMPORTANT = 2


def calibrate(
    labels: SoftLabels, targets: Tensor, regions: Tensor, epsilon: float = 0.1
) -> SoftLabels:
    """Replace the labels of HARD crops by softened hard ones; all others stay unchanged.

    ``targets`` int64 [B], -1 for none; ``regions`` int8 [B] of :class:`Region`. A softened hard
    label is 1 - epsilon on the ground truth and epsilon / (C - 1) on each other class. A crop
    without ground truth keeps its soft label.
    """
    if labels.partner is not None:
        raise ValueError("these labels are mixed already; calibrate before mixing")
    replaced = (regions == Region.HARD) & (targets >= 0)
    hard = SoftLabels.hard(targets.clamp_min(0), labels.num_classes, epsilon)
    filler = labels.k - 1
    classes = torch.cat([hard.classes, hard.classes.expand(-1, filler)], 1)
    empty = hard.log_probs.new_full((len(labels), filler), -math.inf)
    log_probs = torch.cat([hard.log_probs, empty], 1)
    row = replaced[:, None]
    true = labels.true_log_prob
    return replace(
        labels,
        classes=torch.where(row, classes, labels.classes),
        log_probs=torch.where(row, log_probs, labels.log_probs),
        tail=torch.where(row, hard.tail, labels.tail),
        true_log_prob=None if true is None else torch.where(replaced, hard.log_probs[:, 0], true),
    )


def blend(
    labels: SoftLabels, targets: Tensor, weights: Tensor, epsilon: float | Tensor = 0.1
) -> SoftLabels:
    """weights * label + (1 - weights) * softened hard label, row by row.

    ``targets`` int64 [B], -1 for none; ``weights`` float32 [B], 0 .. 1; ``epsilon`` one number or
    float32 [B]. At temperature 1 the result is exactly that sum. A crop without ground truth, or
    whose weight is 1 or NaN (not known), keeps its soft label. The truth gets a slot of its own
    where it has none, and tail "renorm" keeps it. At other temperatures the tail is taken for some
    classes of equal mass and some of none, as many as its recorded masses at 1 and at that
    temperature imply; that is exact for an even tail and for the weights 0 and 1.
    """
    if labels.partner is not None:
        raise ValueError("these labels are mixed already; calibrate before mixing")
    others = labels.num_classes - 1
    soften = torch.as_tensor(epsilon if others else 0.0).to(weights).expand_as(weights)[:, None]
    row = (targets >= 0) & (weights < 1)
    labels = _slot_for_truth(labels, targets, row)
    weight = weights.clamp(0, 1)[:, None]
    soft, hard = weight.log(), (1 - weight).log()
    spread = hard + (soften / max(1, others)).log()
    filled = torch.isfinite(labels.log_probs)
    truth = filled & (labels.classes == targets[:, None])
    added = torch.where(truth, hard + torch.log1p(-soften), spread)
    mixed = torch.logaddexp(soft + labels.log_probs, added).masked_fill(~filled, -math.inf)
    unstored = labels.num_classes - filled.sum(1)
    tail = _blended_tail(labels.tail, unstored, soft, spread)
    true = labels.true_log_prob
    own = mixed.masked_fill(~truth, -math.inf).logsumexp(1)
    return replace(
        labels,
        log_probs=torch.where(row[:, None], mixed, labels.log_probs),
        tail=torch.where(row[:, None], tail, labels.tail),
        true_log_prob=None if true is None else torch.where(row, own, true),
        truth_slot=False,
    )


def _slot_for_truth(labels: SoftLabels, targets: Tensor, row: Tensor) -> SoftLabels:
    """The same distributions; in each ``row`` (bool [B]) the truth has a slot."""
    classes, log_probs = labels.classes, labels.log_probs
    filled = torch.isfinite(log_probs)
    absent = row & ~(filled & (classes == targets[:, None])).any(1)
    if not labels.truth_slot and labels.k < labels.num_classes:
        empty = torch.full_like(log_probs[:, :1], -math.inf)
        classes = torch.cat([classes, targets.clamp_min(0)[:, None]], 1)
        log_probs = torch.cat([log_probs, empty], 1)
    unstored = (labels.num_classes - filled.sum(1)).clamp_min(1)
    mean = (labels.tail[:, 0] - unstored.log()).clamp_min(LOWEST)
    rest = labels.tail + ((unstored - 1) / unstored).log()[:, None]
    return replace(
        labels,
        classes=torch.cat(
            [classes[:, :-1], torch.where(absent, targets, classes[:, -1])[:, None]], 1
        ),
        log_probs=torch.cat(
            [log_probs[:, :-1], torch.where(absent, mean, log_probs[:, -1])[:, None]], 1
        ),
        tail=torch.where(absent[:, None], rest, labels.tail),
    )


def _blended_tail(tail: Tensor, unstored: Tensor, soft: Tensor, spread: Tensor) -> Tensor:
    """log of the sum of (w p + a)^(1/T) over the unstored classes, [B, 3].

    ``tail`` [B, 3] is that of p, ``soft`` and ``spread`` [B, 1] are log w and log a. The classes
    are taken for ``heavy`` ones that share p's mass evenly and others without any.
    """
    count = unstored[:, None].to(tail.dtype)
    mass = tail[:, :1]
    blended = []
    for i, t in enumerate(TAIL_TEMPERATURES):
        heavy = count.log()
        if t != 1:  # at T = 1 the sum does not depend on how p is spread
            share = (tail[:, i : i + 1] - mass / t) / (1 - 1 / t)
            share = torch.minimum(share.clamp_min(0), heavy)
            heavy = torch.where(torch.isfinite(mass), share, heavy)
        each = torch.logaddexp(soft + mass - heavy, spread) / t
        none = (count - heavy.exp()).clamp_min(0).log() + spread / t
        blended.append(torch.logaddexp(heavy + each, none))
    return torch.cat(blended, 1).masked_fill(count == 0, -math.inf)
