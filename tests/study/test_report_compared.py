"""The page of a comparison: differences with intervals, the goal's level and rings."""

from __future__ import annotations

import dataclasses
import re

import pytest
from test_compare_summary import run
from test_report_page import EVIL, Reader

from ferkd.study.compare.page import budget_panel, verdict
from ferkd.study.compare.summary import remarks, summarise
from ferkd.study.report import Difference, Report, render
from ferkd.study.report.compared import difference_chart


def panel(methods: tuple[str, str] = ("hard", "fkd"), seeds: int = 2):
    base, other = methods
    groups = {
        base: [run(s, [0.2, 0.4, 0.5 + 0.1 * s]) for s in range(seeds)],
        other: [run(s, [0.3, 0.6 + 0.05 * s, 0.7]) for s in range(seeds)],
    }
    rows = summarise(groups, base)
    return budget_panel("short: 30 steps", rows, groups, base, remarks(rows, base, ()))


def page(budget) -> str:
    return render(Report(title="compared", budgets=(budget,)))


def test_the_page_is_well_formed_and_has_tables_curves_and_differences():
    html = page(panel())
    reader = Reader(html)
    assert reader.sections == ["budget-1"]
    assert html.count("<table") == 2 and html.count("<svg") == 6
    # A caption under each says how to read it.
    assert html.count("<figcaption>") == 6 and html.count("<caption>") == 2
    assert "script" not in html and "http" not in html.replace("http-equiv", "")
    words = " ".join(reader.texts)
    assert "hard's final 55.0 %" in words  # the mean of 0.5 and 0.6
    assert "fkd: hard's final 55.0 % at 20 steps" in words  # 0.625 at the second evaluation
    assert "± one sample deviation" in words


def test_names_are_escaped_everywhere():
    html = page(panel(("hard", EVIL)))
    Reader(html)
    assert "<script" not in html and "<img" not in html
    assert Reader(page(panel(("<b>", "<i>")))).sections == ["budget-1"]


def test_one_seed_has_no_interval_and_says_so():
    html = page(panel(seeds=1))
    assert 'class="interval' not in html
    assert "one seed: no deviation and no interval" in html
    assert 'class="interval' in page(panel())


def test_a_ring_stands_on_the_curve_where_the_goal_is_first_reached():
    budget = panel()
    assert budget.goal is not None and budget.goal.reached == {"hard": 2, "fkd": 1}
    html = page(budget)
    rings = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5" class="reached (m\d)"', html)
    assert len(rings) == 4  # two methods, against steps and against seconds
    dots = set(re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="2.4" class="dot (m\d)"', html))
    assert set(rings) <= dots
    # A method that never has the accuracy gets no ring.
    never = dataclasses.replace(budget.goal, reached={"hard": 2})
    assert page(dataclasses.replace(budget, goal=never)).count('class="reached') == 2


def test_differences_are_drawn_to_scale():
    chart = difference_chart(
        (Difference("a", 0.02, (0.0, 0.04), 3), Difference("b", -0.04, None, 1)),
        "points",
        100,
        {"a": 0, "b": 1},
    )
    number = r'"([\d.]+)"'
    zero = float(re.search(rf'<line x1={number}[^>]*class="level"', chart)[1])
    low, high = map(
        float, re.search(rf"<line x1={number} x2={number}[^>]*interval", chart).groups()
    )
    first, second = (float(x) for x in re.findall(rf"<circle cx={number}", chart))
    assert low == pytest.approx(zero, abs=0.11) and first == pytest.approx(
        (low + high) / 2, abs=0.11
    )
    assert zero - second == pytest.approx(2 * (first - zero), abs=0.3)
    assert "a: +2 [+0, +4], 3 common seeds" in chart and "b: -4, 1 common seed<" in chart
    assert difference_chart((), "points", 100, {}) == ""


def judged(seeds: int, **top1: list[float]) -> str:
    groups = {name: [run(s, [a]) for s, a in enumerate(values)] for name, values in top1.items()}
    rows = summarise({name: runs[:seeds] for name, runs in groups.items()}, "hard")
    return verdict({"baseline": "hard", "budgets": {"short": {"methods": rows}}})


def test_the_verdict_on_one_method_is_the_tables_interval():
    # Differences 0.09, 0.10, 0.11: half the interval is 4.3027 * 0.01 / sqrt 3 = 0.0248.
    told = judged(3, hard=[0.5, 0.5, 0.5], fkd=[0.59, 0.60, 0.61])
    start = "short: best mean top-1 60.0% by fkd, +10.0 points against hard"
    assert told == f"{start} (the interval leaves 0 out)."
    # Differences 0.00, 0.02, 0.04: half is 0.0497, more than their mean.
    assert judged(3, hard=[0.5] * 3, fkd=[0.50, 0.52, 0.54]).endswith(
        "against hard (within the noise)."
    )
    assert judged(1, hard=[0.5], fkd=[0.6]).endswith("+10.0 points against hard.")


def test_the_verdict_on_the_best_of_several_asks_for_more():
    """Differences 0.04, 0.06, 0.08: t = 0.06 / (0.02 / sqrt 3) = 5.196 is beyond 4.303 (95 %) but
    not beyond 7.649 (98.33 %, the best of three)."""
    alone = judged(3, hard=[0.5] * 3, a=[0.54, 0.56, 0.58])
    assert alone.endswith("(the interval leaves 0 out).")
    three = judged(3, hard=[0.5] * 3, a=[0.54, 0.56, 0.58], b=[0.5] * 3, c=[0.4] * 3)
    assert three.endswith("(within the noise, by an interval of 98.3 % for the best of 3).")


def test_a_best_method_that_loses_on_the_common_seeds_is_told_apart_too():
    """Its mean is the highest by a seed that the baseline has not: paired, it is below it."""
    groups = {
        "hard": [run(0, [0.50]), run(1, [0.50]), run(2, [0.50])],
        "fkd": [run(0, [0.45]), run(1, [0.44]), run(2, [0.46]), run(3, [0.95])],
    }
    rows = summarise(groups, "hard")
    said = verdict({"baseline": "hard", "budgets": {"short": {"methods": rows}}})
    assert "by fkd, -5.0 points against hard (the interval leaves 0 out)" in said
