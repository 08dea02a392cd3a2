"""Methods compared on equal budgets: suites, their runs, the table and the page."""

from ferkd.study.compare.report import Compared, compare_runs, compare_suite
from ferkd.study.compare.suite import Budget, Suite, load_suite, make_suite, shipped_suites
from ferkd.study.compare.summary import summarise

__all__ = [
    "Budget",
    "Compared",
    "Suite",
    "compare_runs",
    "compare_suite",
    "load_suite",
    "make_suite",
    "shipped_suites",
    "summarise",
]
