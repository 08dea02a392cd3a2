"""The inspector in a real browser: scalpels, filters, keys, touch, and figures that are Python's.

FERKD_SCREENSHOTS=DIR writes the pictures of docs/inspector.md there, of the store and images that
FERKD_INSPECT_STORE and FERKD_INSPECT_IMAGES name.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blots import HOSTILE, colours, write_blots
from browser import SCREENSHOTS, chromium, keep, opened, overflow
from stores import write_store

from ferkd.calibration.regions import Regions, mine
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.store import LabelStore
from ferkd.study.inspection import write_page
from ferkd.study.inspector.page import prepare
from ferkd.study.inspector.server import Server
from ferkd.system.text import name as visible

SHOWN = tuple(visible(name) for name in HOSTILE)
READY = "html[data-ready=yes]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of names that try to break out, their labels and the page about them."""
    root = tmp_path_factory.mktemp("inspector")
    write_blots(root / "images", HOSTILE, 10, 2)
    label(root / "images", colours(5), root / "labels", crops=9, workers=1)
    write_page(root / "labels", root / "page.html", images=root / "images")
    return root


def at(page: Any, scalpel: str) -> Any:
    return page.locator(f"[data-scalpel={scalpel}]")


def thresholds(page: Any) -> tuple[float, ...]:
    """What the page offers to copy."""
    found = re.search(r"thresholds: \[(.*?)\]", page.inner_text("#line-recipe"))
    assert found
    return tuple(map(float, found[1].split(",")))


def plain(words: str) -> str:
    """Without the spaces at which no line may end."""
    return words.replace("\u00a0", " ")


def shares(page: Any) -> dict[str, str]:
    rows = page.locator("#regions tbody tr").all()
    return {
        row.get_attribute("data-region"): plain(row.locator(".share").inner_text()) for row in rows
    }


def said_by_python(page: Any, store: Path) -> dict[str, str]:
    found = mine(LabelStore.open(store), Regions(thresholds=thresholds(page))).shares
    return {name: f"{share:.1%}".replace("%", " %") for name, share in found.items()}


def test_shares_are_those_of_python_wherever_the_scalpels_stand(browser: Any, root: Path) -> None:
    with opened(browser, root / "page.html") as page:
        page.wait_for_selector(READY)
        start = mine(LabelStore.open(root / "labels")).thresholds
        assert thresholds(page) == tuple(start)
        seen = [shares(page)]
        assert seen[0] == said_by_python(page, root / "labels")
        box = at(page, "M").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 400, box["y"], steps=5)
        page.mouse.up()
        page.wait_for_timeout(100)
        seen.append(shares(page))
        assert seen[1]["hard"] != "0.0 %" and seen[1] == said_by_python(page, root / "labels")
        page.fill("#number-T", "0.87")
        page.press("#number-T", "Enter")
        page.wait_for_timeout(100)
        seen.append(shares(page))
        assert thresholds(page)[2] == 0.87 and seen[2] == said_by_python(page, root / "labels")
        assert seen[2]["discarded"] in plain(page.inner_text("#verdict"))
        page.click("#reset")
        page.wait_for_timeout(100)
        assert shares(page) == seen[0]


def test_ties_are_rounded_as_python_rounds_them(browser: Any, tmp_path: Path) -> None:
    """400 crops: every other share ends in .25 or .75 percent."""
    store = write_store(tmp_path / "labels", ids=tuple(f"a/{i:03}.jpg" for i in range(100)))
    write_page(store, tmp_path / "page.html")
    ties = 0
    with opened(browser, tmp_path / "page.html") as page:
        page.wait_for_selector(READY)
        assert not page.locator("#images").is_visible()
        at(page, "L").focus()
        page.keyboard.press("Home")
        for _ in range(14):
            page.keyboard.press("PageUp")
            page.keyboard.press("PageUp")
            page.evaluate("() => new Promise(requestAnimationFrame)")
            assert shares(page) == said_by_python(page, store.path)
            share = mine(store, Regions(thresholds=thresholds(page))).shares["discarded"]
            ties += round(400 * share) % 2
    assert ties > 3


def test_classes_and_reliability_follow_too(browser: Any, root: Path) -> None:
    store = LabelStore.open(root / "labels")
    with opened(browser, root / "page.html") as page:
        page.wait_for_selector(READY)
        page.fill("#number-M", "0.6")
        page.press("#number-M", "Enter")
        page.wait_for_timeout(100)
        mining = mine(store, Regions(thresholds=thresholds(page)))
        rows, crops = np.arange(len(store))[:, None], np.arange(9)
        right = store.labels(rows, crops).top1().numpy().reshape(-1, 9)
        for region, row in enumerate(page.locator("#regions tbody tr").all()):
            chosen = mining.by_score() == region
            hits = (right == store.targets[:, None])[chosen]
            assert plain(row.locator(".right").inner_text()) == f"{hits.mean():.1%}".replace(
                "%", " %"
            )
        for row in page.locator("#by-class tbody tr").all():
            number = int(row.get_attribute("data-class"))
            of_class = mining.by_score()[store.targets == number]
            assert row.locator("th").inner_text() == visible(store.class_names[number])
            cells = [plain(cell) for cell in row.locator("td").all_inner_texts()[1:4]]
            assert cells == [f"{(of_class == r).mean():.1%}".replace("%", " %") for r in range(3)]


def test_keys_move_scalpels_that_push_each_other(browser: Any, root: Path) -> None:
    with opened(browser, root / "page.html") as page:
        page.wait_for_selector(READY)
        order = []
        page.keyboard.press("Tab")
        for _ in range(3):
            order.append(page.evaluate("document.activeElement.dataset.scalpel"))
            page.keyboard.press("Tab")
        assert order == ["L", "M", "T"]
        at(page, "L").focus()
        for key in ("Home", "PageUp", "PageUp", "ArrowRight", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert thresholds(page)[0] == 0.051
        assert at(page, "L").get_attribute("aria-valuenow") == "0.051"
        page.keyboard.press("End")
        page.wait_for_timeout(100)
        assert thresholds(page) == (1, 1, 1)
        at(page, "T").focus()
        page.keyboard.press("Home")
        page.wait_for_timeout(100)
        assert thresholds(page) == (0, 0, 0)


def test_filters_and_an_image_with_all_its_crops(browser: Any, root: Path) -> None:
    with opened(browser, root / "page.html") as page:
        page.wait_for_selector(READY)
        assert page.inner_text("#found") == "50 images of the 50 in this page"
        page.select_option("#filter-cls", label=SHOWN[1])
        assert page.inner_text("#found").startswith("10 images")
        assert set(page.locator(".tile b").all_inner_texts()) == {SHOWN[1]}
        page.select_option("#filter-word", "denies")
        denied = int(page.inner_text("#found").split()[0])
        assert 1 <= denied <= 3
        page.select_option("#filter-cls", "")
        page.select_option("#filter-word", "")
        page.select_option("#filter-region", "1")
        assert page.inner_text("#found").startswith("0 images")  # low is middle at the start
        page.fill("#number-M", "0.7")
        page.press("#number-M", "Enter")
        page.wait_for_timeout(300)
        assert int(page.inner_text("#found").split()[0]) > 5
        drawn = page.locator("#tiles .crop").evaluate_all(
            "all => all.map(g => g.className.baseVal)"
        )
        assert set(drawn) == {"crop r1"}

        tile = page.locator("#tiles button").first
        tile.focus()
        page.keyboard.press("Enter")
        dialog = page.locator("#viewer")
        assert dialog.locator(".crops > li").count() == dialog.locator(".crop").count() == 9
        assert dialog.locator(".crops > li").first.locator("ol li").count() == 5
        dialog.locator(".crop-button").nth(3).focus()
        assert dialog.locator(".crop.lit").count() == 1
        name = dialog.locator("h2").inner_text()
        page.keyboard.press("ArrowRight")
        assert dialog.locator("h2").inner_text() != name
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert page.evaluate("document.activeElement.closest('.tile') !== null")


def test_names_are_text_and_lines_are_copied(browser: Any, root: Path) -> None:
    with opened(browser, root / "page.html") as page:
        page.wait_for_selector(READY)
        body = page.inner_text("body")
        assert all(name in body for name in SHOWN) and "\u202e" not in body
        assert page.locator("b b, bdi script, bdi b").count() == 0
        assert page.locator("#doubts tbody tr").count() == 10
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click("[data-copy=inspect]")
        page.wait_for_selector("text=Copied")
        low, middle, top = (f"{t:g}" if t == 1 else repr(t) for t in thresholds(page))
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.inner_text("#line-inspect")
        assert copied == (
            f"ferkd inspect {root / 'labels'} --images {root / 'images'} "
            f"--thresholds {low},{middle},{top}"
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_of_it_and_takes_touches(browser: Any, root: Path, theme: str) -> None:
    with opened(browser, root / "page.html", phone=True, theme=theme) as page:
        page.wait_for_selector(READY)
        assert overflow(page) <= 0 and "oint at" not in page.inner_text("body")
        before = shares(page)
        session = page.context.new_cdp_session(page)
        at(page, "M").scroll_into_view_if_needed()
        box = at(page, "M").bounding_box()
        assert box["height"] >= 30
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def touch(kind: str, *points: tuple[float, float]) -> None:
            session.send(
                "Input.dispatchTouchEvent",
                {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]},
            )

        touch("touchStart", (x, y))
        for step in range(1, 6):
            touch("touchMove", (x + 25 * step, y + step))
        touch("touchEnd")
        page.wait_for_timeout(100)
        assert shares(page) != before and shares(page) == said_by_python(page, root / "labels")
        dialog = page.locator("#viewer")
        page.wait_for_timeout(500)
        for _ in range(5):  # the end of the drag may take the next touch, later on a busy machine
            page.locator("#tiles button").first.tap()
            page.wait_for_timeout(1000)
            if dialog.is_visible():
                break
        dialog.wait_for()
        assert overflow(page) <= 0
        width = dialog.evaluate("e => [e.scrollWidth, e.clientWidth]")
        assert width[0] <= width[1]
        dialog.locator(".crop-button").nth(2).tap()
        dialog.locator(".crop.lit").wait_for(state="attached")
        dialog.locator("text=Close").tap()
        dialog.wait_for(state="hidden")


def test_a_whole_store_is_paged_through(browser: Any, root: Path) -> None:
    store = LabelStore.open(root / "labels")
    with Server(prepare(store, open_images(root / "images")), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with opened(browser, server.url) as page:
                page.wait_for_selector(READY)
                assert shares(page) == said_by_python(page, root / "labels")
                assert page.inner_text("#found") == "50 images"
                assert page.locator(".tile").count() == 24
                page.click("#more")
                page.locator(".tile").nth(47).wait_for()
                assert page.locator(".tile").count() == 48
                page.fill("#number-M", "0.7")
                page.press("#number-M", "Enter")
                page.select_option("#filter-region", "1")
                page.locator("#found:not(:text('50'))").wait_for()
                mining = mine(store, Regions(thresholds=thresholds(page)))
                hard = int((mining.by_score() == 1).any(1).sum())
                assert page.inner_text("#found").split()[0] == str(hard)
                page.locator("#doubts button").first.click()
                page.wait_for_selector("#viewer .crops > li")
                href = page.locator("#viewer .picture image").get_attribute("href")
                assert page.request.get(server.url + href).body()[:2] == b"\xff\xd8"
        finally:
            server.shutdown()


@pytest.mark.skipif(SCREENSHOTS not in os.environ, reason=f"{SCREENSHOTS} is not set")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True])
def test_pictures_for_the_documents(
    browser: Any, root: Path, tmp_path: Path, phone: bool, theme: str
) -> None:
    store = os.environ.get("FERKD_INSPECT_STORE", root / "labels")
    images = os.environ.get("FERKD_INSPECT_IMAGES", root / "images")
    write_page(store, tmp_path / "page.html", images=images)
    form = f"{'phone' if phone else 'desktop'}-{theme}"
    with opened(browser, tmp_path / "page.html", phone=phone, theme=theme) as page:
        page.wait_for_selector(READY)
        window = page.viewport_size
        page.set_viewport_size({**window, "height": 1620 if phone else 1340})
        page.wait_for_timeout(300)
        keep(page, f"inspector-{form}-before")
        page.fill("#number-M", "0.8")
        page.press("#number-M", "Enter")
        page.fill("#number-T", "0.99")
        page.press("#number-T", "Enter")
        page.wait_for_timeout(300)
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        keep(page, f"inspector-{form}-after")
        page.set_viewport_size(window)
        page.evaluate("document.querySelector('#images').scrollIntoView()")
        keep(page, f"inspector-{form}-images")
        page.select_option("#filter-order", "suspicious")
        page.wait_for_timeout(200)
        page.locator("#tiles button").first.click()
        page.wait_for_timeout(300)
        keep(page, f"inspector-{form}-open")
