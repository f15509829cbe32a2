"""Pictures of the console's pages, by Chromium."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, Page, sync_playwright

LOGIN = "ada:shop"
WIDTH, HEIGHT = 1280, 960
_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
_PAGES = ("overview", "jobs", "queues", "deadletters", "workers")


def photograph(url: str, folder: Path) -> None:
    """Write `console-PAGE.png` for the pages that docs show, the overview also in the dark theme.

    Arguments:
        url: of a Flower whose login is `LOGIN`.
    """
    pages = {page: page for page in _PAGES}
    if dead := _ask(f"{url}/api/penstock/jobs?state=dead")["jobs"]:
        pages["job"] = f"jobs/{dead[0]['id']}"
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        for name, path in pages.items():
            _take(browser, f"{url}/{path}", folder / f"console-{name}.png")
        _take(browser, f"{url}/overview", folder / "console-overview-dark.png", theme="dark")
        browser.close()


def _ask(url: str) -> Any:
    credentials = base64.b64encode(LOGIN.encode()).decode()
    with urlopen(Request(url, headers={"Authorization": f"Basic {credentials}"}), timeout=60) as answer:
        return json.load(answer)


def _take(browser: Browser, url: str, file: Path, *, theme: str = "light") -> None:
    name, _, password = LOGIN.partition(":")
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        http_credentials={"username": name, "password": password},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page: Page = context.new_page()
    page.goto(url)
    if url.endswith("overview"):
        page.wait_for_selector(".console-chart canvas")
    page.wait_for_timeout(1000)  # charts and graphs are drawn after the page has come
    page.screenshot(path=str(file))
    context.close()
