"""FerKD's regions: which stored labels deserve trust, and what the others become.

The teacher's confidence s in a crop is compared with three thresholds low <= middle <= top
(T_L, T_M, T_T; Shen, "FerKD", ICCV 2023):

==============  ===================  ==========================================================
DISCARDED       s < low or s > top   the crop is never drawn: it teaches nothing
HARD            low <= s < middle    background or context: a softened hard label replaces it
IMPORTANT       middle <= s <= top   the soft label, unchanged
==============  ===================  ==========================================================

That is the paper's rule, ``calibration: steps``. Ours, ``calibration: blend``, has no step: every
crop that is not discarded is trained on r(s) p + (1 - r(s)) h, with p the soft label, h the
softened hard one and r(s) how often the teacher is right at that score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ferkd.calibration.ranks import row_chunks
from ferkd.calibration.reliability import Evidence, Rule, propose, reliability, weights_of
from ferkd.store.reader import LabelStore
from ferkd.store.soft import LOWEST, TAIL_TEMPERATURES, SoftLabels
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

Calibration = Literal["steps", "blend"]
Score = Literal["max_prob", "true_prob"]
Scale = Literal["probability", "image_quantile"]

ENOUGH = 5  # crops left of an image: 5 to 100 stored ones tie in the suite flowers-ablation
_MANY = 0.2  # of the crops lost; where fewer are, the discard is not what left few


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


class Regions(Part):
    """How labels are divided and calibrated.

    ``thresholds``: (low, middle, top), or a rule that reads them off the labels: "auto", which
    places all three; "reliable", which only discards the crops about which the teacher is more
    often wrong than right; "none", which keeps all crops (see
    `ferkd.calibration.reliability.propose`).
    ``calibration``: "steps", the paper's rule, or "blend", which weights the labels of all kept
    crops by their reliability and does not read ``middle``.
    ``score``: the teacher's largest probability, or its probability of the ground truth.
    ``scale``: compare the score itself, or its rank among the crops of the image (0 .. 1).
    ``epsilon``: mass that a softened hard label leaves to the other classes; "reliability", for
    "blend" alone, is 1 - r(s) of each crop, so that no hard label is surer than the teacher is
    right, and a crop at chance gets an even label.
    ``keep``: how many crops an image keeps at least, of those it has: where the thresholds leave
    fewer, but some, its discarded crops of the largest score come back, with their soft labels
    where there is no hard band and as hard ones where there is.
    ``shuffle``: a seed with which the regions found, as many of each, are dealt to the store's
    crops at random; None for the crops they were found on. It is the control of an experiment:
    what the score knows is lost, and what discarding at that rate does by itself is left.
    """

    thresholds: Rule | tuple[float, float, float] = "reliable"
    calibration: Calibration = "steps"
    score: Score = "max_prob"
    scale: Scale = "probability"
    epsilon: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["reliability"] = 0.1
    keep: Annotated[int, Field(ge=1)] = 1
    shuffle: Annotated[int, Field(ge=0)] | None = None

    @field_validator("thresholds")
    @classmethod
    def _ordered(cls, value: str | tuple[float, float, float]) -> str | tuple[float, float, float]:
        if not isinstance(value, str):
            check_thresholds(*value)
        return value

    @model_validator(mode="after")
    def _softening_is_known(self) -> Regions:
        if self.epsilon == "reliability" and self.calibration != "blend":
            raise ValueError(
                "epsilon reliability needs calibration blend; the steps of the paper take a number"
            )
        return self

    @model_validator(mode="after")
    def _shuffles_regions(self) -> Regions:
        if self.shuffle is not None and self.calibration != "steps":
            raise ValueError(
                "shuffle deals regions to other crops, and calibration blend weighs each crop by "
                "its own score; use calibration steps"
            )
        return self


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


def keep_every_image(regions: NDArray[np.int8], region: Region = Region.HARD) -> NDArray[np.int8]:
    """Put the crops of images that have nothing left into ``region``, so no image is lost."""
    empty = (regions == Region.DISCARDED).all(axis=1)
    return np.where(empty[:, None], np.int8(region), regions)


def keep_some(
    regions: NDArray[np.int8],
    scores: NDArray[np.floating],
    keep: int,
    region: Region = Region.IMPORTANT,
) -> NDArray[np.int8]:
    """Put into ``region`` the discarded crops of the largest scores of each image that has fewer
    than ``keep`` crops left, but some; regions and scores [N, crops]."""
    discarded = regions == Region.DISCARDED
    left = (~discarded).sum(axis=1)
    missing = np.where(left > 0, np.minimum(keep, regions.shape[1]) - left, 0)
    order = np.argsort(np.where(discarded, -scores, np.inf), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return np.where(rank < missing[:, None], np.int8(region), regions)


def shuffled(regions: NDArray[np.int8], seed: int) -> NDArray[np.int8]:
    """The same regions [N, crops], as many of each, dealt to all crops evenly at random."""
    dealt = np.random.default_rng(seed).permutation(regions.reshape(-1))
    return dealt.reshape(regions.shape)


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


@dataclass(frozen=True)
class Mining:
    """The regions of a whole store and what they were made from.

    ``regions`` int8 [N, crops], what becomes of each crop; ``kept_whole`` bool [N], the images all
    of whose scores say discarded: none of their crops is, so that no image is lost. ``shares`` of
    all crops by region name are by the scores alone, without what ``settings.keep`` brings back.
    ``evidence`` is None where neither a rule nor the calibration asked for it. ``weights`` uint8
    [N, crops] in 255ths, what is left of each soft label under "blend"; None under "steps" and
    without ground truth.
    """

    settings: Regions
    regions: NDArray[np.int8]
    thresholds: Thresholds
    shares: dict[str, float]
    kept_whole: NDArray[np.bool_]
    without_target: int
    evidence: Evidence | None
    weights: NDArray[np.uint8] | None = None

    def calibrate(
        self,
        labels: SoftLabels,
        targets: Tensor,
        rows: NDArray[np.integer],
        crops: NDArray[np.integer],
    ) -> SoftLabels:
        """The labels to train on, by the settings' calibration.

        ``labels`` and ``targets`` (int64, -1 for none) are those of the crops ``crops`` [n, m] of
        the images ``rows`` [n], n * m in all, in that order.
        """
        at = rows[:, None], crops
        epsilon = self.settings.epsilon
        if self.settings.calibration == "steps" and not isinstance(epsilon, str):
            regions = torch.from_numpy(self.regions[at].reshape(-1))
            return calibrate(labels, targets, regions, epsilon)
        if self.weights is None:
            return labels
        weights = torch.from_numpy(self.weights[at].reshape(-1)).float() / 255
        if not isinstance(epsilon, str):
            return blend(labels, targets, weights, epsilon)
        surest = weights.clamp_min(1 / labels.num_classes)  # below chance it would deny the truth
        return blend(labels, targets, weights, 1 - surest)

    @property
    def rescued(self) -> int:
        """Images that are kept whole though all of their crops score as discarded."""
        return int(self.kept_whole.sum())

    @property
    def never_drawn(self) -> float:
        """The share of all crops that training never shows, 0 .. 1."""
        gone = sum(
            int((self.regions[rows] == Region.DISCARDED).sum())
            for rows in row_chunks(*self.regions.shape)
        )
        return gone / max(1, self.regions.size)

    @property
    def left(self) -> float:
        """How many crops of an image training draws from, on average."""
        return self.regions.shape[1] * (1 - self.never_drawn)

    def by_score(self, rows: slice | NDArray[np.integer] | int = slice(None)) -> NDArray[np.int8]:
        """The regions that the scores of the images ``rows`` say, int8 [n, crops]."""
        empty = self.kept_whole[rows]
        return np.where(empty[..., None], np.int8(Region.DISCARDED), self.regions[rows])

    @property
    def mean_weight(self) -> float | None:
        """What is left of the soft labels of kept crops on average, 0 .. 1; None under "steps"."""
        if self.weights is None:
            return None
        total = kept = 0
        for rows in row_chunks(*self.regions.shape):
            weights = self.weights[rows][self.regions[rows] != Region.DISCARDED]
            total, kept = total + int(weights.sum(dtype=np.int64)), kept + weights.size
        return total / max(1, kept) / 255

    @property
    def note(self) -> str | None:
        """What a user must know before the figures: None, that FerKD does nothing here, or that
        the discard leaves few crops of an image."""
        idle = self.without_target == len(self.regions) and self.weights is None
        if idle and not self.shares["discarded"]:
            return (
                "no image has ground truth, so nothing is calibrated or discarded: training is "
                "FKD's, whatever its method is called; label without --no-targets for FerKD"
            )
        gone = self.never_drawn
        if self.left < ENOUGH and gone > _MANY:
            return (
                f"{gone:.0%} of the crops are never drawn, which leaves {self.left:.1f} of "
                f"{self.regions.shape[1]} stored crops an image; fewer than {ENOUGH} may cost more "
                f"accuracy than doubtful labels do: store {math.ceil(ENOUGH / (1 - gone))} crops "
                f"(ferkd label --crops), or keep {ENOUGH} of each image (regions.keep)"
            )
        return None

    def describe(self) -> str:
        """One line for the log."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        line = "thresholds {:.3f} / {:.3f} / {:.3f}: ".format(*self.thresholds) + shares
        if self.settings.shuffle is not None:
            line += f", dealt to the crops at random (seed {self.settings.shuffle})"
        line += f"; calibration {self.settings.calibration}, epsilon {self.settings.epsilon}"
        if (weight := self.mean_weight) is not None:
            line += f", mean weight of the soft labels {weight:.3f}"
        if self.rescued:
            hard = self.thresholds.low < self.thresholds.middle
            what = "count as hard" if hard else "are kept whole"
            line += (
                f"; {self.rescued} images with all crops discarded {what}, so that "
                f"{self.never_drawn:.1%} of all crops are never drawn"
            )
        if self.settings.keep > 1:
            line += f"; at least {self.settings.keep} crops of an image kept, {self.left:.1f} left"
        if self.without_target:
            line += f"; {self.without_target} images without ground truth keep their soft labels"
        if self.shares["discarded"] > 0.5:
            line += (
                "; more than half of the crops are discarded, is this a teacher for these images?"
            )
        return line if self.evidence is None else f"{line} ({self.evidence.reason})"


def mine(store: LabelStore, settings: Regions | None = None) -> Mining:
    """Divide all crops of a store into regions, and weigh their labels where that is asked for.

    Raises InputError when the settings cannot be met, for instance thresholds out of order.
    """
    settings = settings or Regions()
    scores, correct = scores_of(store, settings.score, settings.scale)
    known, chance = store.targets >= 0, 1 / store.num_classes
    blended = settings.calibration == "blend"
    evidence = None
    if isinstance(settings.thresholds, str):
        evidence = propose(scores, correct, known, store.num_classes, settings.thresholds)
        thresholds = check_thresholds(*evidence.thresholds)
    else:
        thresholds = check_thresholds(*settings.thresholds)
        if blended:
            curve = reliability(scores[known], correct[known]) if known.any() else None
            evidence = Evidence(thresholds, chance, curve, "fixed thresholds")
    if blended:
        thresholds = thresholds._replace(middle=thresholds.low)
    curve = evidence.reliability if evidence is not None else None
    del correct
    # Where nothing asks for hard labels (low = middle), none is made up for such an image: the
    # teacher doubts all of its crops, so its ground truth may be what is wrong.
    rescue = Region.HARD if thresholds.low < thresholds.middle else Region.IMPORTANT
    regions = np.empty(scores.shape, np.int8)
    for rows in row_chunks(*scores.shape):
        regions[rows] = classify_scores(scores[rows], *thresholds)
    if settings.shuffle is not None:  # at the rate of what would have been trained on
        whole = keep_every_image(regions, rescue)
        regions = shuffled(keep_some(whole, scores, settings.keep, rescue), settings.shuffle)
    shares = {region.name.lower(): float((regions == region).mean()) for region in Region}
    kept_whole = (regions == Region.DISCARDED).all(axis=1)
    regions[kept_whole] = rescue
    if settings.keep > 1 and settings.shuffle is None:
        for rows in row_chunks(*scores.shape):
            regions[rows] = keep_some(regions[rows], scores[rows], settings.keep, rescue)
    return Mining(
        settings=settings,
        regions=regions,
        thresholds=thresholds,
        shares=shares,
        kept_whole=kept_whole,
        without_target=int((~known).sum()),
        evidence=evidence,
        weights=weights_of(curve, scores) if blended and curve is not None else None,
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
