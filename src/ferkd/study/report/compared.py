"""The charts of one budget of a suite: mean curves, the goal, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ferkd.study.report import plots
from ferkd.study.report.model import Budget, Difference
from ferkd.study.report.svg import Frame, extent, tag, text

_ROW = 24  # pixels a method takes in a plot of differences


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows and how to read it."""

    title: str
    words: str
    svg: str


def budget_charts(budget: Budget, slots: Mapping[str, int]) -> list[Figure]:
    """The charts of a budget that have something to show, in the order of the page."""
    repeated = any(curve.runs > 1 for curve in budget.curves)
    line = "One line a method" + (
        ", the mean of its seeds, with a band of ± one sample deviation." if repeated else "."
    )
    goal = ""
    if budget.goal is not None:
        goal = f" The dashed level is {budget.goal.name}; a ring marks where a line first has it."
    equal = {
        "steps": "Left of another line: fewer optimiser steps for the same figure.",
        "seconds": "As before, against the time of training as the clock had it: other work on "
        "the machine counts too.",
    }
    figures = [
        Figure(
            f"{name} against {x}",
            f"{line} {better} {equal[x]}{goal if y == 'top1' else ''}",
            plots.curve_chart(budget.curves, x, y, slots, goal=budget.goal),
        )
        for y, name, better in (
            ("top1", "Top-1", "Higher is better."),
            ("nll", "NLL", "Lower is better."),
        )
        for x in ("steps", "seconds")
        if budget.curves
    ]
    read = (
        "The dot is the mean over common seeds of the method minus the baseline, the bar Student's "
        "95 % interval (none for one seed). A bar across the zero line: this suite does not tell "
        "the two apart."
    )
    for differences, name, side, scale, unit in (
        (budget.top1, "Top-1", "Right of zero is better.", 100.0, "points"),
        (budget.nll, "NLL", "Left of zero is better.", 1.0, "nats"),
    ):
        title = f"{name} against {budget.baseline}, paired by seed"
        svg = difference_chart(differences, f"{name} difference, {unit}", scale, slots)
        figures.append(Figure(title, f"{read} {side}", svg))
    return [figure for figure in figures if figure.svg]


def difference_chart(
    differences: Sequence[Difference], unit: str, scale: float, slots: Mapping[str, int]
) -> str:
    """One row a method: its mean difference as a dot, the interval as a bar; "" without any."""
    edges = [e for d in differences for e in (d.mean, *(d.interval or ()))]
    shown = extent([*edges, 0.0])
    if not differences or shown is None:
        return ""
    names = [plots.ellipsis(d.method, 22) for d in differences]
    frame = Frame(
        shown,
        (0, float(len(differences))),
        height=_ROW * len(differences) + 60,
        left=14 + 7.8 * max(map(len, names)),
    )
    zero = frame.px(0)
    parts = [
        tag("g", frame.axes(unit, "", x_scale=scale), class_="no-y"),
        tag("line", x1=zero, x2=zero, y1=frame.top, y2=frame.floor, class_="level"),
    ]
    for row, (found, name) in enumerate(zip(differences, names, strict=True)):
        y, style = frame.top + (row + 0.5) * _ROW, plots.colour(slots[found.method])
        words = f"{found.method}: {scale * found.mean:+.3g}"
        marks = []
        if found.interval is not None:
            low, high = found.interval
            words += f" [{scale * low:+.3g}, {scale * high:+.3g}]"
            ends = {"x1": frame.px(low), "x2": frame.px(high), "y1": y, "y2": y}
            marks.append(tag("line", **ends, class_=f"interval {style}"))
        words += f", {found.seeds} common seed{'s' if found.seeds > 1 else ''}"
        dot = tag("circle", cx=frame.px(found.mean), cy=y, r=4.0, class_=f"dot {style}")
        hint = tag("title", escape(words))
        parts.append(tag("g", hint, *marks, dot))
        parts.append(text(name, frame.left - 8, y + 3.5, text_anchor="end", class_="name"))
    return frame.document(*parts, label=unit)
