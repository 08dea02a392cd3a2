"""The page that a distillation leaves, in a real browser: desktop and phone, light and dark.

FERKD_SCREENSHOTS=DIR keeps the pictures; those of docs/ are made so, of the report that
FERKD_REPORT names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import DESKTOP, PHONE, chromium

from ferkd.product.figures import Figures
from ferkd.product.look import Look
from ferkd.product.report import write_report

NAMES = ("<script>alert(1)</script>", "زهرة", "🌻 sunflower", 'quo"te\u202e\x1b[2J', "a" * 60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of made-up figures with names that try to break out; or FERKD_REPORT."""
    if given := os.environ.get("FERKD_REPORT"):
        return Path(given)
    root, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    folders = ("script", "flower", "sun", "quote", "long")
    for folder in folders:
        (root / "val" / folder).mkdir(parents=True)
        for i in range(3):
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (240, 160 + 60 * i), interpolation=cv2.INTER_CUBIC)
            assert cv2.imwrite(str(root / "val" / folder / f"{i}.jpg"), picture)

    def figures(top1: float) -> Figures:
        counts = np.full((5, 5), round(100 * (1 - top1) / 4), np.int64)
        np.fill_diagonal(counts, round(100 * top1))
        worst = [(f"{folders[i % 5]}/{i // 5}.jpg", i % 5, (i + 1) % 5, 0.99) for i in range(12)]
        bins = tuple((0.05 + i / 10, (0.05 + i / 10) ** 2, 10 * i + 1) for i in range(10))
        return Figures(top1, 0.5, 0.04, (top1,) * 5, counts, bins, tuple(worst))

    where = str(root / "a-rather-long-folder" / "of-photographs" / "val")
    seen = Look(
        *(where, str(root / "val"), where, NAMES, 3000, 200, 15, 30, 900, 192, 53760.0, 2e4, 2),
        warnings=('class quo"te has 30 images, which is few',),
    )
    spec = f"timm/tf_efficientnet_lite0?checkpoint={root}/tf_efficientnet_lite0.safetensors"
    result = {
        "teacher": {"spec": spec, "probe_top1": 0.877},
        "student": {"name": "timm/mobilenetv3_small_050", "method": "ferkd", "reason": "why"},
        "difference": {"points": 1.0, "low": -1.2, "high": 3.2, "images": 900},
        "commands": {
            name: f"ferkd {word} {where} --val {where} --teacher {spec} --image-size 112 --out out"
            for name, word in (("teacher", "finetune"), ("labels", "label"), ("student", "train"))
        },
    }
    page = write_report(
        seen=seen,
        plan_lines=["plan   about 12 min: teacher 3 min", "       24 epochs: as asked for"],
        result=result,
        spent=dict.fromkeys(("look", "teacher", "labels", "student"), 100.0),
        figures={"teacher": figures(0.91), "student": figures(0.8), "baseline": figures(0.79)},
        sizes={"teacher": 3_400_000, "student": 600_000, "baseline": 600_000},
        speeds={"teacher": 9.0, "student": 2.0, "baseline": 2.1},
        next_commands=[f"ferkd predict {root}/out/model PHOTO.jpg"],
    )
    assert "\u202e" not in page and "\x1b" not in page
    path = root / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_the_report_fits_the_screen_and_stays_at_home(
    browser: Any, report: Path, name: str, size: dict[str, int], theme: str
) -> None:
    page = browser.new_page(viewport=size, color_scheme=theme, device_scale_factor=1)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: told.append(request.url))
    page.goto(report.as_uri())
    assert [text for text in told if not text.startswith(("data:", report.as_uri()))] == []
    across = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(across) <= 0
    # What is wider than the screen scrolls inside its own frame; text of figures stays on it.
    cut = """[...document.querySelectorAll('h1,h2,p,figcaption,svg text')].filter(e => {
        const r = e.getBoundingClientRect();
        return r.right > document.documentElement.clientWidth + 1 || r.left < -1;
    }).map(e => e.textContent)"""
    assert page.evaluate(cut) == []
    hidden = """[...document.images].filter(i => !i.complete || !i.naturalWidth).length"""
    assert page.evaluate(hidden) == 0
    if "FERKD_REPORT" not in os.environ:
        assert NAMES[0] in page.inner_text("body") and NAMES[2] in page.inner_text("body")
    if (keep := os.environ.get("FERKD_SCREENSHOTS")) and theme == "light":
        page.screenshot(path=f"{keep}/report-{name}.png", full_page=True)
    elif keep:
        page.screenshot(path=f"{keep}/report-{name}-dark.png")
    page.close()
