"""From scores, regions and boxes to the data of the report's sections: pure functions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkd.study.report.model import (
    REGION_NAMES,
    ConfidencePanel,
    MiningPanel,
    RegionShares,
    Reliability,
)
from ferkd.system.statistics import auroc, roc_curve, wilson_interval


def confidence_panel(
    scores: ArrayLike,
    regions: ArrayLike,
    *,
    thresholds: tuple[float, float, float] | None,
    correct: ArrayLike | None = None,
    reliability: Reliability | None = None,
    classes: int | None = None,
    score: str = "max_prob",
    bins: int = 50,
    note: str = "",
) -> ConfidencePanel:
    """Histogram of ``scores`` (any shape, 0..1) by region code (same shape).

    ``reliability`` is the curve that the thresholds were read off, where there is one; else it is
    computed from ``correct`` (argmax = y, same shape) in the same bins with Wilson's 95 % interval;
    without both the panel has none.
    """
    s, code = np.asarray(scores, np.float64).ravel(), np.asarray(regions).ravel()
    if s.shape != code.shape:
        raise ValueError(f"{s.size} scores for {code.size} region codes")
    edges = np.linspace(0, 1, bins + 1)
    counts = [np.histogram(s[code == r], edges)[0] for r in range(len(REGION_NAMES))]
    if reliability is None and correct is not None:
        reliability = _binned_reliability(s, np.asarray(correct, np.bool_).ravel(), edges)
    return ConfidencePanel(
        edges=_floats(edges),
        counts=tuple(tuple(c.tolist()) for c in counts),
        thresholds=thresholds,
        reliability=reliability,
        chance=1 / classes if classes else None,
        score=score,
        note=note,
    )


def _binned_reliability(
    s: NDArray[np.float64], correct: NDArray[np.bool_], edges: NDArray[np.float64]
) -> Reliability:
    total, right = np.histogram(s, edges)[0], np.histogram(s[correct], edges)[0]
    filled = total > 0
    sums = np.histogram(s, edges, weights=s)[0]
    low, high = wilson_interval(right[filled], total[filled])
    return Reliability(
        at=_floats(sums[filled] / total[filled]),  # the bin's mean score, not its middle
        rate=_floats(right[filled] / total[filled]),
        low=_floats(low),
        high=_floats(high),
    )


def mining_panel(
    scores: ArrayLike,
    shares: ArrayLike,
    regions: ArrayLike,
    *,
    holds: float = 0.5,
    bins: int = 20,
    note: str = "",
) -> MiningPanel:
    """Judge regions and score by the share of the true object inside each crop (same shapes).

    ``shares`` are fractions 0..1 (``ferkd.crops.object_share``); crops whose share is nan (no
    object) are left out.
    """
    s, share = np.asarray(scores, np.float64).ravel(), np.asarray(shares, np.float64).ravel()
    code = np.asarray(regions).ravel()
    if not s.shape == share.shape == code.shape:
        raise ValueError(f"{s.size} scores, {share.size} shares, {code.size} region codes")
    known = ~np.isnan(share)
    s, share, code = s[known], share[known], code[known]
    held = share >= holds
    false, true = roc_curve(s, held)
    return MiningPanel(
        regions=tuple(
            _region_shares(r, share[code == r], holds, bins) for r in range(len(REGION_NAMES))
        ),
        auroc=auroc(s, held),
        positives=float(held.mean()) if held.size else math.nan,
        false_rate=_floats(false),
        true_rate=_floats(true),
        holds=holds,
        note=note,
    )


def _region_shares(
    region: int, share: NDArray[np.float64], holds: float, bins: int
) -> RegionShares:
    histogram = tuple(np.histogram(share, bins, (0, 1))[0].tolist())
    if not share.size:
        nan = math.nan
        return RegionShares(region, 0, nan, (nan, nan, nan), nan, histogram)
    q1, q2, q3 = (float(q) for q in np.quantile(share, (0.25, 0.5, 0.75)))
    return RegionShares(
        region=region,
        crops=int(share.size),
        mean=float(share.mean()),
        quartiles=(q1, q2, q3),
        holding=float((share >= holds).mean()),
        histogram=histogram,
    )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
