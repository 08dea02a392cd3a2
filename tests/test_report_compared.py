"""The page of a comparison: differences with intervals, the goal's level and rings."""

from __future__ import annotations

import dataclasses
import re

import pytest
from test_compare_summary import run
from test_report_page import EVIL, Reader

from ferkd.compare.page import budget_panel
from ferkd.compare.summary import remarks, summarise
from ferkd.report import Difference, Report, render
from ferkd.report.compared import difference_chart


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
