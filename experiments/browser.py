"""The report's page in headless Chromium, driven by Playwright: for tests, timings and pictures in documents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Two frames and a moment: what the page does when a part of it comes into view is done then.
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"


class BrowserMissingError(RuntimeError):
    """There is no Playwright or no Chromium here."""


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser without a network: Chromium of the system, else the one that `playwright install chromium` fetched.

    Raises `BrowserMissingError`.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise BrowserMissingError('Playwright is not installed (pip install -e ".[dev]")') from error
    installed = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=installed, args=["--host-resolver-rules=MAP * ~NOTFOUND"]
            )
        except Error as error:
            if installed is not None:
                raise
            raise BrowserMissingError("no Chromium is installed") from error
        with browser:
            yield browser


def open_file(page: Page, path: Path, query: str = "") -> None:
    """Load a file and let it come to rest."""
    page.goto(path.resolve().as_uri() + query)
    page.evaluate(SETTLED)
