"""The statistics of a comparison: means, paired differences, time to the baseline's accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferkd.study.compare.runs import Run
from ferkd.system.results import Result
from ferkd.system.statistics import mean, mean_interval, sample_deviation

FIGURES = ("top1", "top5", "nll", "ece", "brier")
MINED = ("thresholds", "regions", "rescued")  # what FerKD found in the labels, shares by region
# Two equal means may differ in their last bits, depending on how they were added.
_ROUNDING = 1e-12

Methods = Mapping[str, Sequence[Run]]


def summarise(methods: Methods, baseline: str | None) -> dict[str, Any]:
    """Of one budget: by method the figures of the table, as plain data (None: not there).

    ``baseline`` is the method that others are compared with; None, or one without a run, leaves
    the comparisons out.
    """
    base = methods.get(baseline, ()) if baseline is not None else ()
    goal = _mean([run.figure("top1") for run in base])
    rows = {}
    for name, runs in methods.items():
        if not runs:
            continue
        row = _figures(runs)
        if base and name != baseline:
            for key in ("top1", "nll"):
                row[f"{key}_difference"] = paired(_by_seed(runs, key), _by_seed(base, key))
        row["reach"] = None
        if goal is not None:
            row["goal"] = goal
            row["reach"] = reach(runs, goal, base)
        rows[name] = row
    return rows


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    row: dict[str, Any] = {"seeds": sorted(run.seed for run in runs)}
    for key in FIGURES:
        values = [run.figure(key) for run in runs]
        row[f"{key}_mean"] = row[key] = _mean(values)
        row[f"{key}_std"] = None if None in values else sample_deviation(_known(values))
    row["seconds"] = mean([run.seconds for run in runs])
    row["seconds_std"] = sample_deviation([run.seconds for run in runs])
    for key in ("steps", "decodes", "crops"):
        row[key] = mean([float(getattr(run, key)) for run in runs])
    row["alone"] = all(run.alone for run in runs)
    row["runs"] = {
        str(run.seed): {
            "top1": run.figure("top1"),
            "nll": run.figure("nll"),
            "seconds": run.seconds,
            "run": str(run.folder),
            **{key: run.result[key] for key in MINED if key in run.result},
        }
        for run in sorted(runs, key=lambda run: run.seed)
    }
    return row


@dataclass(frozen=True, eq=False)
class Paired(Result):
    """The mean difference to the baseline over the seeds of both, with Student's 95 % interval.

    ``std``, ``low`` and ``high`` are None for a single common seed; ``unpaired`` lists the seeds
    that only one side has.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: list[int]
    unpaired: list[int]


def paired(ours: Mapping[int, float], base: Mapping[int, float]) -> Paired | None:
    """The differences ours - base by seed in one; None where no seed is common."""
    common = sorted(ours.keys() & base.keys())
    if not common:
        return None
    differences = [ours[seed] - base[seed] for seed in common]
    interval = mean_interval(differences)
    low, high = (None, None) if interval is None else interval
    return Paired(
        mean=mean(differences),
        std=sample_deviation(differences),
        low=low,
        high=high,
        seeds=common,
        unpaired=sorted(ours.keys() ^ base.keys()),
    )


@dataclass(frozen=True, eq=False)
class Reach(Result):
    """What it took to a goal, means over the seeds, and as shares of the baseline's whole runs.

    ``seconds_share`` is None unless all these runs are known to have had the machine for
    themselves.
    """

    steps: float
    decodes: float
    seconds: float
    steps_share: float | None
    decodes_share: float | None
    seconds_share: float | None


def reach(runs: Sequence[Run], goal: float, base: Sequence[Run]) -> Reach | None:
    """Where the mean curve of ``runs`` first has a top-1 of ``goal``; None when it never does."""
    points = curve(runs)
    place = reached_at(points, goal)
    if place is None:
        return None
    point = points[place]

    def share(key: str) -> float | None:
        whole = mean([float(getattr(run, key)) for run in base])
        return float(point[key]) / whole if whole else None

    alone = all(run.alone for run in (*runs, *base))
    return Reach(
        steps=point.steps,
        decodes=point.decodes,
        seconds=point.seconds,
        steps_share=share("steps"),
        decodes_share=share("decodes"),
        seconds_share=share("seconds") if alone else None,
    )


def reached_at(points: Sequence[Point], goal: float) -> int | None:
    """The first point of a mean curve with a top-1 of ``goal`` or more; None without one."""
    for place, point in enumerate(points):
        if point.top1 is not None and point.top1 >= goal - _ROUNDING:
            return place
    return None


@dataclass(frozen=True, eq=False)
class Point(Result):
    """A mean curve at one step; figures are None where a run has none, deviations of one run."""

    steps: int
    seconds: float
    decodes: float
    top1: float | None
    top1_std: float | None
    nll: float | None
    nll_std: float | None


def curve(runs: Sequence[Run]) -> list[Point]:
    """The mean curve: one point for each step at which all runs were evaluated."""
    if not runs:
        return []
    common = set.intersection(*(set(run.evaluations) for run in runs))
    points = []
    for step in sorted(common):
        lines = [run.evaluations[step] for run in runs]
        figures = {}
        for key in ("top1", "nll"):
            values = [line.get(key) for line in lines]
            figures[key] = _mean(values)
            figures[f"{key}_std"] = None if None in values else sample_deviation(_known(values))
        points.append(
            Point(
                steps=step,
                seconds=mean([float(line["seconds"]) for line in lines]),
                decodes=mean([float(run.decodes_at(step)) for run in runs]),
                **figures,
            )
        )
    return points


def remarks(rows: Mapping[str, Any], baseline: str | None, missing: Sequence[str]) -> list[str]:
    """What a reader must know beside the table: what is missing, left out or a single seed."""
    lines = []
    if missing:
        lines.append(f"not finished: {', '.join(missing)}")
    for name, row in rows.items():
        difference = row.get("top1_difference")
        if difference and difference["unpaired"]:
            seeds = ", ".join(map(str, difference["unpaired"]))
            lines.append(
                f"{name} against {baseline}: only one of the two has these seeds, which the "
                f"difference leaves out: {seeds}"
            )
        elif baseline in rows and name != baseline and difference is None:
            lines.append(f"{name} shares no seed with {baseline}: no difference can be paired")
    company = [name for name, row in rows.items() if not row["alone"]]
    if company:
        lines.append(
            f"seconds are not compared: other work ran beside {', '.join(company)}, or nobody "
            "watched; run a suite with --jobs 1 on a quiet machine"
        )
    if rows and all(len(row["seeds"]) == 1 for row in rows.values()):
        lines.append("one seed: no deviation and no interval; a small difference may be luck")
    return lines


def _by_seed(runs: Sequence[Run], key: str) -> dict[int, float]:
    values = {run.seed: run.figure(key) for run in runs}
    return {seed: value for seed, value in values.items() if value is not None}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values and where one is missing (means of all seeds or of none)."""
    return None if not values or None in values else mean(_known(values))
