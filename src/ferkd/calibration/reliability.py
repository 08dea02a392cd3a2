"""Thresholds read off the labels: how often is the teacher right about the image, given its s?

The store knows for every crop whether the teacher's answer equals the ground truth, so the
reliability r(s) = P(answer = truth | s) can be estimated and the three thresholds placed on it
instead of searched for (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from ferkd.calibration.ranks import order_statistics, row_chunks
from ferkd.system.statistics import wilson_interval

Rule = Literal["auto", "reliable", "none"]
RULES: tuple[Rule, ...] = get_args(Rule)

_BINS = 100
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
    return np.asarray(isotonic_regression(values, weights=weights).x, np.float64)


def reliability(
    scores: NDArray[np.floating],
    correct: NDArray[np.bool_],
    bins: int = _BINS,
    known: NDArray[np.bool_] | None = None,
) -> Reliability:
    """Estimate r(s) from scores and outcomes [N, crops] of the images ``known`` [N], all if None.

    Equal scores that fall into two bins are divided in the order of the images. Beside the
    arguments it holds one byte a crop.
    """

    def walk() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for rows in row_chunks(*scores.shape):
            taken = slice(None) if known is None else known[rows]
            yield scores[rows][taken].astype(np.float32, copy=False), correct[rows][taken]

    total = scores.size if known is None else int(known.sum()) * scores.shape[1]
    edges = np.unique(np.linspace(0, total, min(bins, total) + 1).astype(int))
    count = len(edges) - 1
    # The score at each inner edge, and the place of the first that is equal to it.
    values, places = order_statistics(lambda: (s.ravel() for s, _ in walk()), edges[1:-1])
    ties = dict(zip(values.tolist(), places.astype(np.int64).tolist(), strict=True))
    right, sums = np.zeros(count), np.zeros(count)
    where = np.empty((total // scores.shape[1], scores.shape[1]), np.min_scalar_type(count))
    row = 0
    for chunk, outcome in walk():
        s = chunk.ravel()
        bin_of = np.searchsorted(values, s, "right")
        for value, place in ties.items():
            equal = np.flatnonzero(s == np.float32(value))
            places_here = place + np.arange(len(equal))
            bin_of[equal] = np.searchsorted(edges[1:-1], places_here, "right")
            ties[value] = place + len(equal)
        right += np.bincount(bin_of, outcome.ravel(), count)
        sums += np.bincount(bin_of, s.astype(np.float64), count)
        where[row : row + len(chunk)] = bin_of.reshape(chunk.shape)
        row += len(chunk)
    crops = np.diff(edges)
    rate = isotonic(right / crops, crops.astype(np.float64))
    images = _images(where, rate)
    low, high = wilson_interval(rate * images, images)
    return Reliability(sums / crops, rate, low, high, crops)


def _images(bins: NDArray[np.unsignedinteger], rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of how many images each bin holds crops, from the bins of all crops [N, crops].

    Pooled bins, of one ``rate``, share one estimate and so all images that fall in any of them.
    """
    pools, pool = np.unique(rate, return_inverse=True)
    images = np.zeros(len(pools))
    for rows in row_chunks(len(bins), max(bins.shape[1], len(pools))):
        present = np.zeros((len(bins[rows]), len(pools)), bool)
        present[np.arange(len(present))[:, None], pool[bins[rows]]] = True
        images += present.sum(0)
    return images[pool]


def weights_of(curve: Reliability, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
    """r(s) of each score [N, crops] in 255ths: one byte a crop.

    Linear between the bins' mean scores and constant outside them; 255 for NaN (not known).
    """
    s, bins = np.unique(curve.s, return_inverse=True)  # bins of one score have one rate, too
    rates = np.bincount(bins, curve.rate * curve.crops) / np.bincount(bins, curve.crops)
    weights = np.empty(scores.shape, np.uint8)
    for rows in row_chunks(*scores.shape):  # np.interp returns float64
        rate = np.interp(scores[rows], s, rates)
        weights[rows] = np.rint(np.nan_to_num(rate, nan=1.0) * 255)
    return weights


def easy_cut(scores: NDArray[np.floating], share: float = EASY_SHARE) -> float:
    """The top threshold: the easiest crops above it hold at most ``share`` of sum(1 - s).

    It is the easiest score that stays; ties stay with it.
    """

    def walk() -> Iterator[NDArray[np.floating]]:
        for rows in row_chunks(*scores.shape):
            yield scores[rows][~np.isnan(scores[rows])]

    def signal(s: NDArray[np.floating]) -> NDArray[np.float64]:
        return 1 - s.astype(np.float64)

    total = sum(float(signal(chunk).sum()) for chunk in walk())
    if total <= 0:
        return 1.0
    cut, _ = order_statistics(walk, np.array([(1 - share) * total]), signal)
    return float(cut[0])


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
    curve = reliability(scores, correct, known=has_target)
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
