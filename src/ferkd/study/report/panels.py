"""From results, runs, scores and boxes to the data of the report's sections: pure functions.

Only ``curves_from_runs`` reads files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkd.study.report.model import (
    REGION_NAMES,
    Column,
    Comparison,
    ConfidencePanel,
    Curve,
    MethodRow,
    MiningPanel,
    RegionShares,
    Reliability,
    Series,
    Stat,
)
from ferkd.study.statistics import auroc, mean, roc_curve, sample_deviation, wilson_interval
from ferkd.system.errors import InputError

COLUMNS = (
    Column("top1", "top-1, %", "percent", "higher"),
    Column("nll", "NLL", "number", "lower"),
    Column("ece", "ECE, %", "percent", "lower"),
    Column("seconds", "seconds", "seconds", "lower"),
    Column("crops_per_second", "crops/s", "count", "higher"),
    Column("steps", "steps", "count"),
)


def comparison_from_results(
    results: Iterable[Mapping[str, Any]],
    columns: Sequence[Column] = COLUMNS,
    *,
    note: str = "",
) -> Comparison:
    """Mean and sample deviation of each metric over the results (runs) of one method.

    ``results`` are the contents of ``result.json`` files; methods keep the order in which they
    first appear. A metric that a run lacks counts as nan, and so makes its method's mean nan:
    a mean over some of the seeds would be compared with a mean over all of them.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(str(result["method"]), []).append(result)
    rows = []
    for method, runs in groups.items():
        values = [[_number(run.get(column.key)) for run in runs] for column in columns]
        stats = tuple(Stat(mean(v), sample_deviation(v)) for v in values)
        rows.append(MethodRow(method, len(runs), stats))
    return Comparison(tuple(columns), tuple(rows), note)


def curves_from_runs(
    runs: Iterable[Path], methods: Mapping[Path, str] | None = None
) -> tuple[Curve, ...]:
    """One curve per method from the evaluations in the ``metrics.jsonl`` of its run directories.

    The method's name is ``methods[run]`` where given, else the one in ``result.json``, else (an
    unfinished run) the directory's name. Runs of one method are averaged over the steps that all
    of them evaluated, so that a mean never changes its members along the curve; runs without an
    evaluation are left out. Raises ``InputError`` for a directory without ``metrics.jsonl`` and
    for a line, other than an unfinished last one, that is not JSON.
    """
    groups: dict[str, list[dict[int, dict[str, Any]]]] = {}
    for run in runs:
        name = (methods or {}).get(run) or _method_of(run)
        evaluations = {int(line["step"]): line for line in _evaluations(run)}
        group = groups.setdefault(name, [])
        if evaluations:
            group.append(evaluations)
    return tuple(_curve(method, group) for method, group in groups.items() if group)


def _curve(method: str, runs: Sequence[Mapping[int, Mapping[str, Any]]]) -> Curve:
    steps = sorted(set.intersection(*(set(run) for run in runs)))

    def column(key: str) -> NDArray[np.float64]:
        values = [[_number(run[step].get(key)) for step in steps] for run in runs]
        return np.array(values, np.float64).reshape(len(runs), len(steps))

    def series(key: str) -> Series:
        v = column(key)
        return Series(_floats(v.mean(0)), _floats(v.min(0)), _floats(v.max(0)))

    return Curve(
        method=method,
        runs=len(runs),
        steps=tuple(float(s) for s in steps),
        seconds=_floats(column("seconds").mean(0)),
        top1=series("top1"),
        nll=series("nll"),
    )


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

    ``shares`` are fractions 0..1 (``stats.object_share``); crops whose share is nan (no object)
    are left out.
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


def _number(value: Any) -> float:
    """A JSON number as float; nan for what is absent, null or not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def _method_of(run: Path) -> str:
    path = run / "result.json"
    if not path.is_file():
        return run.name
    result = _json(path, path.read_text("utf-8"), 1)
    return str(result.get("method", run.name))


def _evaluations(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise InputError(
            f"{run}: no metrics.jsonl there, so this is no run directory; "
            "name directories that 'ferkd train --out' wrote"
        )
    text = path.read_text("utf-8")
    lines = text.splitlines()
    if not text.endswith("\n"):
        lines = lines[:-1]  # a killed writer leaves a line without its end
    parsed = [_json(path, line, n) for n, line in enumerate(lines, 1) if line.strip()]
    return [line for line in parsed if line.get("kind") == "eval" and "step" in line]


def _json(path: Path, text: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {line}: not JSON ({error.msg}); restore the file or leave the run out"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}, line {line}: a JSON object is expected, not {type(value).__name__}; "
            "restore the file or leave the run out"
        )
    return value
