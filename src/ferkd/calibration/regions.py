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
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ferkd.calibration.labels import Region, blend, calibrate
from ferkd.calibration.ranks import row_chunks
from ferkd.calibration.reliability import Evidence, Rule, propose, reliability, weights_of
from ferkd.calibration.scores import Scale, Score, all_scores, sample_rows
from ferkd.calibration.scores import image_quantiles as image_quantiles
from ferkd.calibration.scores import score_of as score_of
from ferkd.calibration.scores import scores_of as scores_of
from ferkd.store.reader import LabelStore
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

Calibration = Literal["steps", "blend"]

# Crops left of an image: 4.6 cost nothing beside 8 in the suite many-classes, 2 were 2 to 4 points
# behind 24 in scenes-where, within the noise.
ENOUGH = 4
_MANY = 0.2  # of the crops lost; where fewer are, the discard is not what left few


class Thresholds(NamedTuple):
    """T_L, T_M and T_T, in the units of the score's scale, 0 .. 1."""

    low: float
    middle: float
    top: float


class Regions(Part):
    """How labels are divided and calibrated.

    - ``thresholds``: (low, middle, top), or a rule that reads them off the labels. "auto" places
      all three. "reliable" only discards the crops about which the teacher is more often wrong
      than right. "none" keeps all crops. See `ferkd.calibration.reliability.propose`.
    - ``calibration``: "steps", the paper's rule, or "blend", which weights the labels of all kept
      crops by their reliability and does not read ``middle``.
    - ``score``: the teacher's largest probability, or its probability of the ground truth.
    - ``scale``: compare the score itself, or its rank among the crops of the image (0 .. 1).
    - ``epsilon``: mass that a softened hard label leaves to the other classes. "reliability", for
      "blend" alone, is 1 - r(s) of each crop: no hard label is then surer than the teacher is
      right, and a crop at chance gets an even label.
    - ``keep``: how many crops an image keeps at least, of those it has. Where the thresholds leave
      fewer, but some, its discarded crops of the largest score come back: with their soft labels
      where there is no hard band, and as hard ones where there is.
    - ``shuffle``: a seed by which the regions found, as many of each, are dealt to the store's
      crops at random; None leaves them where they were found. It is the control of an experiment:
      what the score knows is lost, what discarding at that rate does by itself is left.
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
    if keep <= 1:
        return regions
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


@dataclass(frozen=True)
class Mining:
    """The regions of a whole store and what they were made from.

    ``regions`` int8 [N, crops], what becomes of each crop; ``kept_whole`` bool [N], the images all
    of whose scores say discarded: none of their crops is, so that no image is lost. ``shares`` of
    all crops by region name are without these images' return, see `by_score`. ``evidence`` is None
    where neither a rule nor the calibration asked for it. ``weights`` uint8 [N, crops] in 255ths,
    what is left of each soft label under "blend"; None under "steps" and without ground truth.
    """

    settings: Regions
    regions: NDArray[np.int8]
    thresholds: Thresholds
    shares: dict[str, float]
    kept_whole: NDArray[np.bool_]
    without_target: int
    evidence: Evidence | None
    weights: NDArray[np.uint8] | None = None
    sampled: int | None = None  # images that the thresholds are from, where not from all

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
        if self.sampled is not None:
            line += f"; thresholds from {self.sampled} of the {len(self.regions)} images"
        return line if self.evidence is None else f"{line} ({self.evidence.reason})"


def mine(store: LabelStore, settings: Regions | None = None) -> Mining:
    """Divide all crops of a store into regions, and weigh their labels where that is asked for.

    Raises InputError when the settings cannot be met, for instance thresholds out of order.
    """
    settings = settings or Regions()
    sample = sample_rows(len(store), store.crops_per_image)
    scores, correct = scores_of(store, settings.score, settings.scale, sample)
    known = store.truth(slice(None) if sample is None else sample) >= 0
    chance = 1 / store.num_classes
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
    shape = len(store), store.crops_per_image
    regions = np.empty(shape, np.int8)
    weights = np.empty(shape, np.uint8) if blended and curve is not None else None
    unknown = 0
    for rows, values in (
        ((rows, scores[rows]) for rows in row_chunks(*shape))
        if sample is None
        else all_scores(store, settings.score, settings.scale)
    ):
        regions[rows] = keep_some(
            classify_scores(values, *thresholds), values, settings.keep, rescue
        )
        if weights is not None and curve is not None:
            weights[rows] = weights_of(curve, values)
        unknown += int((store.truth(rows) < 0).sum())
    if settings.shuffle is not None:  # at the rate of what would have been trained on
        regions = shuffled(keep_every_image(regions, rescue), settings.shuffle)
    shares = {region.name.lower(): float((regions == region).mean()) for region in Region}
    kept_whole = (regions == Region.DISCARDED).all(axis=1)
    regions[kept_whole] = rescue
    return Mining(
        settings=settings,
        regions=regions,
        thresholds=thresholds,
        shares=shares,
        kept_whole=kept_whole,
        without_target=unknown,
        evidence=evidence,
        weights=weights,
        sampled=None if sample is None else len(sample),
    )


def sampled_thresholds(
    store: LabelStore, settings: Regions, rows: NDArray[np.int64]
) -> tuple[Thresholds, dict[str, float]]:
    """What :func:`mine` finds by a rule from the images ``rows``, and the shares of their crops by
    region. Memory and time are of the sample. Raises InputError."""
    scores, correct = scores_of(store, settings.score, settings.scale, rows)
    known = store.truth(rows) >= 0
    rule = settings.thresholds
    if not isinstance(rule, str):
        raise InputError(f"thresholds are {rule}; give a rule, such as reliable")
    found = propose(scores, correct, known, store.num_classes, rule)
    thresholds = check_thresholds(*found.thresholds)
    regions = classify_scores(scores, *thresholds)
    return thresholds, {r.name.lower(): float((regions == r).mean()) for r in Region}
