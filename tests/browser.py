"""Pages in a real browser: headless Chromium, whatever it says and asks for kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SCREENSHOTS = "FERKD_SCREENSHOTS"  # a folder: the tests write the pictures of the documents there
_LARGEST = 150_000  # bytes of such a picture


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs ferkd[browser]")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"needs Chromium, e.g. apt-get install chromium: {error.message[:100]}")
        yield opened
        opened.close()


@contextmanager
def opened(
    browser: Any, address: str | Path, *, phone: bool = False, theme: str = "light"
) -> Iterator[Any]:
    """A page at ``address`` that must stay silent: no message of the console, no error, no dialog,
    no request but to its own host and none at all from a file."""
    context = browser.new_context(
        viewport=PHONE if phone else DESKTOP, has_touch=phone, is_mobile=phone, color_scheme=theme
    )
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    url = address.as_uri() if isinstance(address, Path) else address
    own = url if isinstance(address, Path) else url.rsplit("/", 1)[0] + "/"

    def asked(request: Any) -> None:
        if not request.url.startswith(("data:", own)):
            told.append(request.url)

    page.on("request", asked)
    page.goto(url)
    yield page
    context.close()
    assert told == []


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return int(
        page.evaluate(
            "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
        )
    )


def keep(page: Any, name: str, **options: Any) -> None:
    """Keep a picture of the page as NAME.webp for the documents, where that is asked for."""
    if folder := os.environ.get(SCREENSHOTS):
        picture = Image.open(BytesIO(page.screenshot(**options))).convert("RGB")
        for quality in (82, 70, 55, 40):
            data = BytesIO()
            picture.save(data, "WEBP", quality=quality, method=6)
            if data.tell() <= _LARGEST:
                break
        (Path(folder) / f"{name}.webp").write_bytes(data.getvalue())
