"""The few statistics that rules and reports rest on: means over seeds, AUROC, intervals.

AUROC and ROC curve stand on NumPy and SciPy. scikit-learn has them too, but it is an extra here,
and a page about a store is made without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; nan for no value and where any value is nan."""
    return math.fsum(values) / len(values) if len(values) else math.nan


def sample_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n-1 in the denominator); None for fewer than two values.

    One seed says nothing about the spread, so there is no number to give, not a zero.
    """
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion, elementwise; (0, 1) where there was no trial.

    ``level`` is the coverage. Unlike the normal interval it stays inside [0, 1] and does not shrink
    to nothing at 0 or n successes, which bins of a confident teacher reach all the time.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    # Wilson's centre and half-width with numerator and denominator multiplied by n: safe at n = 0.
    centre = (k + z2 / 2) / (n + z2)
    half = np.sqrt(z2) / (n + z2) * np.sqrt(k * (n - k) / np.maximum(n, 1) + z2 / 4)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _checked(scores: ArrayLike, positives: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    s, y = np.asarray(scores, np.float64).ravel(), np.asarray(positives, np.bool_).ravel()
    if s.shape != y.shape:
        raise ValueError(f"{s.size} scores for {y.size} truths: one truth per score is needed")
    if np.isnan(s).any():
        raise ValueError("a score is nan: it has no rank")
    return s, y


def auroc(scores: ArrayLike, positives: ArrayLike) -> float:
    """P(score of a positive > score of a negative), ties counted as half (Mann-Whitney).

    Nan when one of the two classes is absent. O(n log n).
    """
    s, y = _checked(scores, positives)
    pos, neg = int(y.sum()), int((~y).sum())
    if pos == 0 or neg == 0:
        return math.nan
    from scipy.stats import rankdata  # half a second to import, which only reports need

    wins = rankdata(s)[y].sum() - pos * (pos + 1) / 2  # tied scores share the mean of their ranks
    return float(wins / (pos * neg))


def roc_curve(scores: ArrayLike, positives: ArrayLike, points: int = 200) -> tuple[Floats, Floats]:
    """False and true positive rates for falling thresholds, from (0, 0) to (1, 1).

    One vertex per distinct score, thinned evenly to at most ``points``; empty when a class is
    absent.
    """
    s, y = _checked(scores, positives)
    if y.all() or not y.any():
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    ends = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)  # the last of each run of ties
    true = np.concatenate([[0], np.cumsum(y)[ends]]) / y.sum()
    false = np.concatenate([[0], np.cumsum(~y)[ends]]) / (~y).sum()
    keep = np.unique(np.linspace(0, len(true) - 1, min(points, len(true))).round().astype(int))
    return false[keep], true[keep]


def student_t_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = ``probability``, T Student's with ``degrees`` degrees of freedom."""
    if not 0 < probability < 1:
        raise ValueError(f"probability {probability}: it must lie between 0 and 1")
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: at least 1 is needed")
    return float(stdtrit(degrees, probability))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's confidence interval of the mean of ``values``; None for fewer than two."""
    deviation = sample_deviation(values)
    if deviation is None:
        return None
    half = interval_half(deviation, len(values), level)
    return mean(values) - half, mean(values) + half


def interval_half(deviation: float, n: int, level: float = 0.95) -> float:
    """Half the width of that interval, from the sample deviation of ``n`` (2 or more) values."""
    return student_t_quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n)
