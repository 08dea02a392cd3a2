"""The HTML page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferkd.study import report
from ferkd.study.compare.cells import tables
from ferkd.study.compare.report import Compared
from ferkd.study.compare.runs import Run
from ferkd.study.compare.summary import curve, reached_at
from ferkd.system.statistics import interval_half


def write_page(path: Path, compared: Compared) -> None:
    """Write the page of a comparison to ``path``."""
    result = compared.result
    machine = result["machine"]
    finished = sum(len(runs) for methods in compared.groups.values() for runs in methods.values())
    page = report.Report(
        title="Methods compared",
        verdict=verdict(result),
        facts=(
            report.Fact("Suite", result["suite"] or "runs as given"),
            report.Fact("Finished runs", str(finished)),
            report.Fact("Machine", f"{machine['processor']}, {machine['cores']} cores"),
            report.Fact("Software", machine["software"]),
            report.Fact("Date", result["date"]),
        ),
        budgets=budget_panels(compared),
        commands=(result["command"],),
    )
    report.write_report(page, path)


def budget_panels(compared: Compared) -> tuple[report.Budget, ...]:
    """The budgets of a comparison as the page's data."""
    result = compared.result
    return tuple(
        budget_panel(
            compared.titles[name],
            found["methods"],
            compared.groups[name],
            result["baseline"],
            found["remarks"],
        )
        for name, found in result["budgets"].items()
    )


def budget_panel(
    title: str,
    rows: Mapping[str, Any],
    groups: Mapping[str, Sequence[Run]],
    baseline: str | None,
    remarks: Sequence[str] = (),
) -> report.Budget:
    """One budget as the page's data."""
    goal = next((row["goal"] for row in rows.values() if row.get("goal") is not None), None)
    reached = {
        name: place
        for name in rows
        if goal is not None and (place := reached_at(curve(groups[name]), goal)) is not None
    }
    return report.Budget(
        title=title,
        tables=tables(rows, baseline),
        curves=tuple(_curve(name, groups[name]) for name in rows if curve(groups[name])),
        goal=None
        if goal is None
        else report.Goal(goal, f"{baseline}'s final {100 * goal:.1f} %", reached),
        baseline=baseline or "",
        top1=_differences(rows, "top1_difference"),
        nll=_differences(rows, "nll_difference"),
        remarks=remarks,
    )


def _curve(name: str, runs: Sequence[Run]) -> report.Curve:
    points = curve(runs)

    def series(key: str) -> report.Series:
        means = [_number(p[key]) for p in points]
        half = [p[f"{key}_std"] or 0.0 for p in points]
        return report.Series(
            mean=tuple(means),
            low=tuple(m - h for m, h in zip(means, half, strict=True)),
            high=tuple(m + h for m, h in zip(means, half, strict=True)),
        )

    return report.Curve(
        method=name,
        runs=len(runs),
        steps=tuple(float(p.steps) for p in points),
        seconds=tuple(p.seconds for p in points),
        top1=series("top1"),
        nll=series("nll"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _differences(rows: Mapping[str, Any], key: str) -> tuple[report.Difference, ...]:
    found = {name: row.get(key) for name, row in rows.items()}
    return tuple(
        report.Difference(
            name,
            d["mean"],
            None if d["low"] is None else (d["low"], d["high"]),
            len(d["seeds"]),
        )
        for name, d in found.items()
        if d is not None
    )


def verdict(result: Mapping[str, Any]) -> str:
    """By budget the best mean top-1, and whether it is told from the baseline.

    The best of k methods is no method chosen beforehand: its interval is wider than the table's,
    at the level 1 - 0.05 / k, so that with no effect anywhere it leaves 0 out once in 20 suites.
    """
    lines = []
    for name, found in result["budgets"].items():
        ranked = {k: r for k, r in found["methods"].items() if r["top1_mean"] is not None}
        if not ranked:
            continue
        best = max(ranked, key=lambda method: ranked[method]["top1_mean"])
        line = f"{name}: best mean top-1 {ranked[best]['top1_mean']:.1%} by {best}"
        difference = ranked[best].get("top1_difference")
        if difference:
            line += f", {100 * difference['mean']:+.1f} points against {result['baseline']}"
            if difference["std"] is not None:
                equal = difference["mean"] == difference["std"] == 0
                words = "every pair is equal" if equal else _told(difference, found["methods"])
                line += f" ({words})"
        lines.append(line)
    return "; ".join(lines) + "." if lines else ""


def _told(difference: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """What the interval of the best of all ``rows`` that were compared says."""
    count = sum(row.get("top1_difference") is not None for row in rows.values())
    half = interval_half(difference["std"], len(difference["seeds"]), 1 - 0.05 / count)
    told = abs(difference["mean"]) > half
    words = "the interval leaves 0 out" if told else "within the noise"
    if count == 1:
        return words
    return f"{words}, by an interval of {100 - 5 / count:.1f} % for the best of {count}"
