"""Reports of runs and of comparisons in a real browser: silent, at home, and fit for a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blots import HOSTILE
from browser import chromium, keep, opened, overflow
from test_report_compared import panel
from test_report_page import EVIL, full

from ferkd.study.report import Report, write_report
from ferkd.system.text import name as visible

LONG = "ferkd regions.thresholds=[0.31, 0.31, 1.0] data.crops_per_image=4"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of everything under a name that tries to break out, and a comparison."""
    root = tmp_path_factory.mktemp("reports")
    name = f"{EVIL} {HOSTILE[2]} {HOSTILE[3]}"
    run = full(name, methods=("hard", "fkd", LONG))
    assert run.confidence is not None
    run = replace(run, confidence=replace(run.confidence, score="max_prob"))
    write_report(run, root / "run.html")
    compared = Report(
        title=f"Methods compared {HOSTILE[2]}",
        verdict="12 epochs: best mean top-1 71.2 % by fkd, within the noise.",
        budgets=(panel(("hard", LONG)), panel(("hard", HOSTILE[3]), seeds=1)),
        commands=("ferkd compare " + " ".join(f"runs/a-rather-long-name-{i}" for i in range(8)),),
    )
    write_report(compared, root / "compared.html")
    return {"run": root / "run.html", "compared": root / "compared.html"}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("of", ["run", "compared"])
def test_a_report_is_silent_and_fits(
    browser: Any, pages: dict[str, Path], of: str, phone: bool, theme: str
) -> None:
    with opened(browser, pages[of], phone=phone, theme=theme) as page:
        assert overflow(page) <= 0
        body = page.inner_text("body")
        assert visible(HOSTILE[2]) in body and HOSTILE[3] in body and "\u202e" not in body
        assert page.locator("script").count() == 0
        assert ("Point at" in body) == (of == "run" and not phone)
        # Words of charts stay inside them; what is wider than the screen scrolls in a frame.
        cut = page.evaluate(
            """() => [...document.querySelectorAll("h1, h2, p, figcaption, .chart text")]
                .filter((e) => {
                    const edge = (e.closest("svg") ?? document.body).getBoundingClientRect();
                    const own = e.getBoundingClientRect();
                    return own.width && (own.right > edge.right + 1 || own.left < edge.left - 1);
                }).map((e) => e.textContent)"""
        )
        assert cut == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(255, 255, 255)") == (theme == "light")
        keep(page, f"report-{of}-{'phone' if phone else 'desktop'}-{theme}", full_page=phone)


def test_a_filter_of_the_gallery_works_without_scripts(
    browser: Any, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["run"]) as page:
        crops = page.locator(".picture .crop.r1")
        assert crops.first.is_visible()
        page.uncheck(".show-r1")
        assert not crops.first.is_visible() and page.locator(".crop.r2").first.is_visible()
