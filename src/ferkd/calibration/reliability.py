"""Thresholds read off the labels: how often is the teacher right about the image, given its s?

The store knows for every crop whether the teacher's answer equals the ground truth, so the
reliability r(s) = P(answer = truth | s) can be estimated and the three thresholds placed on it
instead of searched for (docs/method.md).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Rule = Literal["auto", "reliable", "none"]
RULES: tuple[Rule, ...] = get_args(Rule)

_BINS = 100
_ROWS = 65_536  # images weighed at a time
_Z = 1.96  # 95 % confidence
EASY_SHARE = 0.01  # of the training signal, sum of 1 - s, that the easiest crops may take along


@dataclass(frozen=True)
class Reliability:
    """r(s) in bins of equal count: all arrays [bins], ``s`` ascending.

    ``rate`` is the monotone (isotonic) estimate; ``low`` and ``high`` its 95 % Wilson band, with
    the number of distinct images, not of crops, as the sample size, because the crops of one
    image are not independent.
    """

    s: NDArray[np.float64]
    rate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    crops: NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """Proposed (low, middle, top) and what they rest on."""

    thresholds: tuple[float, float, float]
    chance: float
    reliability: Reliability | None
    reason: str


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to ``values`` in weighted least squares.

    Pool-adjacent-violators; source: Barlow et al., "Statistical inference under order
    restrictions", 1972.
    """
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values, weights, strict=True):
        means.append(float(value))
        masses.append(float(weight))
        lengths.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mass = masses[-2] + masses[-1]
            means[-2:] = [(means[-2] * masses[-2] + means[-1] * masses[-1]) / mass]
            masses[-2:] = [mass]
            lengths[-2:] = [lengths[-2] + lengths[-1]]
    return np.repeat(means, lengths)


def wilson(rate: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Wilson's 95 % interval of a proportion ``rate`` observed on ``n`` samples."""
    z2 = _Z**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * np.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    return centre - half, centre + half


def reliability(
    scores: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = _BINS
) -> Reliability:
    """Estimate r(s) from scores and outcomes [N, crops] of images that have a ground truth."""
    order = np.argsort(scores, axis=None, kind="stable")
    s = scores.ravel()[order].astype(np.float64)
    right = correct.ravel()[order]
    image = order // scores.shape[1]
    edges = np.unique(np.linspace(0, len(s), min(bins, len(s)) + 1).astype(int))
    slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
    crops = np.array([b.stop - b.start for b in slices])
    raw = np.array([right[b].mean() for b in slices])
    rate = isotonic(raw, crops.astype(np.float64))
    # Pooled bins share one estimate and thus one band, from all images that fall in them.
    images = np.empty(len(slices))
    for value in np.unique(rate):
        pooled = np.flatnonzero(rate == value)
        members = image[slices[pooled[0]].start : slices[pooled[-1]].stop]
        images[pooled] = len(np.unique(members))
    low, high = wilson(rate, images)
    return Reliability(np.array([s[b].mean() for b in slices]), rate, low, high, crops)


def weights_of(curve: Reliability, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
    """r(s) of each score [N, crops] in 255ths: one byte a crop.

    Linear between the bins' mean scores and constant outside them; 255 for NaN (not known).
    """
    s, bins = np.unique(curve.s, return_inverse=True)  # bins of one score have one rate, too
    rates = np.bincount(bins, curve.rate * curve.crops) / np.bincount(bins, curve.crops)
    weights = np.empty(scores.shape, np.uint8)
    for row in range(0, len(scores), _ROWS):  # bounds the float64 that np.interp returns
        rate = np.interp(scores[row : row + _ROWS], s, rates)
        weights[row : row + _ROWS] = np.rint(np.nan_to_num(rate, nan=1.0) * 255)
    return weights


def easy_cut(scores: NDArray[np.floating], share: float = EASY_SHARE) -> float:
    """The top threshold: the easiest crops above it hold at most ``share`` of sum(1 - s)."""
    s = np.sort(scores[~np.isnan(scores)].astype(np.float64))[::-1]
    signal = np.cumsum(1 - s)
    if not len(s) or signal[-1] <= 0:
        return 1.0
    cut = int(np.searchsorted(signal, share * signal[-1], side="right"))
    # Crops 0 .. cut-1 may go; the threshold is the easiest score that stays, ties stay with it.
    return float(s[min(cut, len(s) - 1)])


def propose(
    scores: NDArray[np.floating],
    correct: NDArray[np.bool_],
    has_target: NDArray[np.bool_],
    num_classes: int,
    rule: Rule = "auto",
) -> Evidence:
    """Thresholds from the labels: scores and outcomes [N, crops], ``has_target`` [N].

    "auto": ``middle`` is where r(s) crosses 1/2, since below it the teacher is more often wrong
    than right about the image; ``low`` is the largest s up to which r(s) is not distinguishable
    from chance; ``top`` cuts the easiest crops, together at most 1 % of the training signal.
    "reliable": ``low`` = ``middle`` where r(s) crosses 1/2, and ``top`` = 1: the unreliable crops
    are discarded and none is too easy. "none": 0, 0, 1, all crops are kept. Without ground truth
    r(s) is unknown, and low = middle = 0.
    """
    top = easy_cut(scores) if rule == "auto" else 1.0
    chance = 1 / num_classes
    easy = f"; crops above {top:.3f} hold {EASY_SHARE:.0%} of the signal" if rule == "auto" else ""
    if not has_target.any():
        return Evidence((0.0, 0.0, top), chance, None, f"{rule}: no ground truth{easy}")
    curve = reliability(scores[has_target], correct[has_target])
    if rule == "none":
        return Evidence((0.0, 0.0, 1.0), chance, curve, "none: all crops are kept")
    middle = min(_between(curve, np.flatnonzero(curve.rate < 0.5)), top)
    reason = f"{rule}: r(s) reaches 1/2 at {middle:.3f}"
    if rule == "reliable":
        return Evidence((middle, middle, top), chance, curve, reason)
    low = min(_between(curve, np.flatnonzero(curve.low <= chance)), middle)
    reason += f", leaves chance ({chance:.3f}) at {low:.3f}{easy}"
    return Evidence((low, middle, top), chance, curve, reason)


def _between(curve: Reliability, below: NDArray[np.integer]) -> float:
    """The score halfway between the last bin of ``below`` and the next; 0 for none, 1 for all."""
    if not len(below):
        return 0.0
    last = int(below[-1])
    return 1.0 if last + 1 == len(curve.s) else float((curve.s[last] + curve.s[last + 1]) / 2)
