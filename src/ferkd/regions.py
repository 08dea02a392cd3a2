"""FerKD's regions: which stored labels deserve trust, and what the others become.

The teacher's confidence s in a crop is compared with three thresholds low <= middle <= top
(T_L, T_M, T_T; Shen, "FerKD", ICCV 2023):

==============  ===================  ==========================================================
DISCARDED       s < low or s > top   the crop is never drawn: it teaches nothing
HARD            low <= s < middle    background or context: a softened hard label replaces it
IMPORTANT       middle <= s <= top   the soft label, unchanged
==============  ===================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ferkd.errors import InputError
from ferkd.labels.soft import SoftLabels
from ferkd.labels.store import LabelStore
from ferkd.reliability import Evidence, Rule, propose

Score = Literal["max_prob", "true_prob"]
Scale = Literal["probability", "image_quantile"]


class Region(IntEnum):
    """What becomes of a crop's label."""

    DISCARDED = 0
    HARD = 1
    IMPORTANT = 2


class Thresholds(NamedTuple):
    """T_L, T_M and T_T, in the units of the score's scale, 0 .. 1."""

    low: float
    middle: float
    top: float


class Regions(BaseModel):
    """How labels are divided and calibrated.

    ``thresholds``: (low, middle, top), or a rule that reads them off the labels: "auto", which
    places all three, or "reliable", which only discards the crops about which the teacher is more
    often wrong than right (see `ferkd.reliability.propose`).
    ``score``: the teacher's largest probability, or its probability of the ground truth.
    ``scale``: compare the score itself, or its rank among the crops of the image (0 .. 1).
    ``epsilon``: mass that a softened hard label leaves to the other classes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    thresholds: Rule | tuple[float, float, float] = "auto"
    score: Score = "max_prob"
    scale: Scale = "probability"
    epsilon: float = Field(default=0.1, ge=0.0, lt=1.0)

    @field_validator("thresholds")
    @classmethod
    def _ordered(cls, value: str | tuple[float, float, float]) -> str | tuple[float, float, float]:
        if not isinstance(value, str):
            check_thresholds(*value)
        return value


def check_thresholds(low: float, middle: float, top: float) -> Thresholds:
    """The three as a tuple; raises InputError unless 0 <= low <= middle <= top <= 1."""
    if not 0 <= low <= middle <= top <= 1:  # NaN fails too
        raise InputError(
            f"thresholds {low:g}, {middle:g}, {top:g} are out of order; they must satisfy "
            "0 <= low <= middle <= top <= 1"
        )
    return Thresholds(low, middle, top)


def classify_scores(
    scores: NDArray[np.floating], low: float, middle: float, top: float
) -> NDArray[np.int8]:
    """The region of each score, int8 of the same shape; NaN (no ground truth) is IMPORTANT."""
    check_thresholds(low, middle, top)
    out = np.full(scores.shape, Region.IMPORTANT, dtype=np.int8)
    out[scores < middle] = Region.HARD
    out[(scores < low) | (scores > top)] = Region.DISCARDED
    return out


def classify(
    labels: SoftLabels,
    targets: Tensor | None,
    *,
    low: float,
    middle: float,
    top: float,
    score: Score = "max_prob",
) -> Tensor:
    """The region of each label of a batch, int8 [B]; ``targets`` int64 [B], -1 for none."""
    scores = score_of(labels, targets, score).cpu().numpy()
    return torch.from_numpy(classify_scores(scores, low, middle, top)).to(labels.classes.device)


def score_of(labels: SoftLabels, targets: Tensor | None, score: Score) -> Tensor:
    """The teacher's confidence in each crop, float32 [B]; NaN for true_prob without a target."""
    if score == "max_prob":
        return labels.max_prob()
    if targets is None:
        return torch.full_like(labels.log_probs[:, 0], math.nan)
    return labels.prob_of(targets)


def image_quantiles(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each score's rank among its image's crops, (rank + 1/2) / n with ties averaged; [N, n]."""
    below = (scores[:, None, :] < scores[:, :, None]).sum(2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)
    ranks = (below + equal / 2) / scores.shape[1]
    return np.where(np.isnan(scores), np.nan, ranks).astype(np.float32)


def keep_every_image(regions: NDArray[np.int8]) -> NDArray[np.int8]:
    """Turn the crops of images that have nothing left into HARD ones, so no image is lost."""
    empty = (regions == Region.DISCARDED).all(axis=1)
    return np.where(empty[:, None], np.int8(Region.HARD), regions)


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


@dataclass(frozen=True)
class Mining:
    """The regions of a whole store and what they were made from.

    ``regions`` int8 [N, crops]; ``shares`` of all crops by region name, before images with
    nothing left were given back; ``rescued`` is the number of such images; ``evidence`` is None
    for fixed thresholds.
    """

    regions: NDArray[np.int8]
    thresholds: Thresholds
    shares: dict[str, float]
    rescued: int
    without_target: int
    evidence: Evidence | None

    def describe(self) -> str:
        """One line for the log."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        line = "thresholds {:.3f} / {:.3f} / {:.3f}: ".format(*self.thresholds) + shares
        if self.rescued:
            line += f"; {self.rescued} images with all crops discarded count as hard"
        if self.without_target:
            line += f"; {self.without_target} images without ground truth keep their soft labels"
        if self.shares["discarded"] > 0.5:
            line += (
                "; more than half of the crops are discarded, is this a teacher for these images?"
            )
        return line if self.evidence is None else f"{line} ({self.evidence.reason})"


def mine(store: LabelStore, settings: Regions | None = None) -> Mining:
    """Divide all crops of a store into regions.

    Raises InputError when the settings cannot be met, for instance thresholds out of order.
    """
    settings = settings or Regions()
    scores, correct = scores_of(store, settings.score, settings.scale)
    evidence = None
    if isinstance(settings.thresholds, str):
        known = store.targets >= 0
        evidence = propose(scores, correct, known, store.num_classes, settings.thresholds)
        thresholds = check_thresholds(*evidence.thresholds)
    else:
        thresholds = check_thresholds(*settings.thresholds)
    regions = classify_scores(scores, *thresholds)
    shares = {region.name.lower(): float((regions == region).mean()) for region in Region}
    kept = keep_every_image(regions)
    return Mining(
        regions=kept,
        thresholds=thresholds,
        shares=shares,
        rescued=int((regions == Region.DISCARDED).all(axis=1).sum()),
        without_target=int((store.targets < 0).sum()),
        evidence=evidence,
    )


def scores_of(
    store: LabelStore, score: Score = "max_prob", scale: Scale = "probability"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Confidence of every crop, float32 [N, crops], and whether the teacher's answer is right."""
    shape = (len(store), store.crops_per_image)
    scores, correct = np.empty(shape, np.float32), np.empty(shape, bool)
    for rows, labels, targets in _scan(store):
        values = score_of(labels, targets, score).numpy().reshape(-1, shape[1])
        scores[rows] = image_quantiles(values) if scale == "image_quantile" else values
        correct[rows] = (labels.top1() == targets).numpy().reshape(-1, shape[1])
    return scores, correct


def _scan(store: LabelStore) -> Iterator[tuple[slice, SoftLabels, Tensor]]:
    targets = store.targets.astype(np.int64)
    for rows, _, labels in store.scan():
        yield (
            rows,
            labels,
            torch.from_numpy(np.repeat(targets[rows], store.crops_per_image)),
        )
