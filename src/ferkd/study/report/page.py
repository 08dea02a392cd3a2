"""The report as one HTML file: no scripts, no network, images and charts inside it.

Every name (file, class, method, command) is untrusted text. The template escapes by itself
(autoescape), the charts escape as they are drawn, and the page's own content security policy
forbids scripts and every address but ``data:`` images, should either ever fail. Controls that are
not seen, as those that turn the reading direction, are written out (`ferkd.system.text`).
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ferkd.study.report import plots
from ferkd.study.report.compared import budget_charts
from ferkd.study.report.model import REGION_NAMES, ConfidencePanel, Report
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, write_whole
from ferkd.system.text import lines as visible

if TYPE_CHECKING:
    from jinja2 import Template

NOT_AVAILABLE = "n/a"


def render(report: Report) -> str:
    """The whole page as text. Raises ``InputError`` where jinja2 is not installed."""
    slots = _colour_slots(report)
    page = _template().render(
        report=report,
        region_names=REGION_NAMES,
        colours={method: plots.colour(slot) for method, slot in slots.items()},
        budgets=[budget_charts(budget, slots) for budget in report.budgets],
        shares=region_shares(report.confidence) if report.confidence else [],
        thumbs=_by_region(report),
    )
    return visible(page)


def write_report(report: Report, path: Path) -> None:
    """Write the page to ``path``, whole or not at all; an earlier file is replaced.

    Missing parent directories are made.
    """
    data = render(report).encode()
    make_folder(path.parent)
    write_whole(path, data)


def region_shares(panel: ConfidencePanel) -> list[float]:
    """Share of all crops in each region, by code; nan without crops."""
    counts = [sum(row) for row in panel.counts]
    total = sum(counts)
    return [count / total if total else math.nan for count in counts]


def _colour_slots(report: Report) -> dict[str, int]:
    """One colour a method, the same in the table and in every chart."""
    names = [name for budget in report.budgets for table in budget.tables for name in table.rows]
    return {name: slot for slot, name in enumerate(dict.fromkeys(names))}


def _by_region(report: Report) -> list[tuple[int, list[object]]]:
    thumbs = report.gallery.thumbs if report.gallery else ()
    groups = [(r, [t for t in thumbs if t.crop.region == r]) for r in range(len(REGION_NAMES))]
    return [(region, list(group)) for region, group in groups if group]


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else NOT_AVAILABLE


def _decimal(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOT_AVAILABLE


@cache
def _template() -> Template:
    try:
        import jinja2
    except ImportError:
        raise InputError(
            "writing an HTML report needs jinja2, which is not installed; "
            "install it with: pip install 'ferkd[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, decimal=_decimal, crop_words=plots.crop_words)
    environment.globals.update(
        confidence_chart=plots.confidence_chart,
        reliability_chart=plots.reliability_chart,
        shares_chart=plots.shares_chart,
        roc_chart=plots.roc_chart,
        gallery_picture=plots.gallery_picture,
    )
    return environment.get_template("report.html.j2")
