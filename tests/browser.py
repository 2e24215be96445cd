"""A headless Chromium, where one is installed: what a page shows, what its console says, and what axe finds."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0
"""Seconds that a page may need beside other work."""
SETTLE = 2.0
"""Seconds that charts are given to draw themselves before a picture."""
NOT_OURS = re.compile(r"/ajax-api/2\.0/mlflow/users/current$")
"""MLflow's pages ask its server without accounts who is there, and are told 404."""


NO_ERROR = "ResizeObserver loop completed with undelivered notifications"
"""What MLflow's tables say on a slow machine: the rest is drawn in the next frame."""


@contextmanager
def browsing(**options: object) -> Iterator[Tab]:
    """A tab of a browser of its own; the test is skipped where there is none."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make tools"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}): apt-get install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(**options)
        page.set_default_timeout(1000 * PATIENCE)
        yield Tab(page)
        browser.close()


class Tab:
    """A page that is open, and the errors in its console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", self._failed)
        page.on("console", self._heard)

    def _failed(self, error: object) -> None:
        if NO_ERROR not in str(error):
            self.errors.append(str(error))

    def _heard(self, message: object) -> None:
        url = message.location.get("url", "")
        if message.type == "error" and NO_ERROR not in message.text and not NOT_OURS.search(url):
            self.errors.append(f"{message.text} {url}")

    def open(self, address: str) -> None:
        """Another address, as in a new tab: a change behind # alone would not load the page again."""
        self.page.goto("about:blank")
        self.page.goto(address)

    def shows(self, *texts: str) -> None:
        """Wait until every text is in sight."""
        for text in texts:
            self.page.get_by_text(text, exact=True).first.wait_for(state="visible")

    def shot(
        self, name: str, height: int | None = None, rows: tuple[int, int] | None = None
    ) -> None:
        """Keep a picture of what is in sight as NAME.png under SCREENSHOTS, in 128 colours; nothing where that is not set.

        `height` of the window for this picture; of its pixels only `rows`, from and to, so that it names no folder of the machine.
        """
        if not (folder := os.environ.get("SCREENSHOTS")):
            return
        from PIL import Image

        size = self.page.viewport_size
        if height is not None:
            self.page.set_viewport_size({"width": size["width"], "height": height})
        self.page.wait_for_timeout(1000 * SETTLE)
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        if rows is not None:
            picture = picture.crop((0, rows[0], picture.width, rows[1]))
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture.quantize(128).save(Path(folder) / f"{name}.png", optimize=True)
        self.page.set_viewport_size(size)

    def axe(self) -> list[tuple[str, str, str]]:
        """(rule, impact, first place) of everything that axe-core finds wrong."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(self.page).response["violations"]
        return [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found]
