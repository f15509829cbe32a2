"""The console in a process of its own over a ledger of the test's, and a browser that looks at it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Flower, serving
from support.ledgers import set_up

from penstock.ledger.sql.database import Database
from penstock.workers.local.up.redis_server import RedisServer, free_port

sys.path.append(str(Path(__file__).parent))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_LAUNCH = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Database]:
    """The console's ledger, on SQLite; a test fills it through the ledger's own functions."""
    database = Database(set_up(f"sqlite:///{tmp_path / 'console.db'}"))
    yield database
    database.close()


@pytest.fixture
def start_console(
    redis_server: RedisServer, ledger: Database, prefix: str, tmp_path: Path
) -> Iterator[Callable[..., Flower]]:
    """`start_console(imports=(), **environment)`: a console; `op:secret` is its admin."""
    stack: list[Any] = []

    def start(*imports: str, **environment: str) -> Flower:
        variables = {
            "PENSTOCK_BROKER_URL": redis_server.url,
            "PENSTOCK_PREFIX": prefix,
            "PENSTOCK_DATABASE_URL": ledger.url,
            "PENSTOCK_FLOWER_BASIC_AUTH": "op:secret",
            **environment,
        }
        context = serving(tmp_path, free_port(), variables, imports)
        stack.append(context)
        return context.__enter__()

    yield start
    for context in reversed(stack):
        context.__exit__(None, None, None)


@pytest.fixture
def console(start_console: Callable[..., Flower]) -> Flower:
    return start_console()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium of the system, headless."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(_LAUNCH))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, console: Flower) -> Iterator[Callable[..., Any]]:
    """`open_page(path, width=1280, theme="light", login="op:secret")`: a page of the console in the browser.

    It fails at the end of the test if a page asked another host, logged an error or threw.
    """
    contexts: list[Any] = []
    troubles: list[str] = []

    def open(path: str, width: int = 1280, theme: str = "light", login: str = "op:secret", height: int = 900) -> Any:
        user, _, password = login.partition(":")
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            http_credentials={"username": user, "password": password},
        )
        contexts.append(context)
        page = context.new_page()
        here = f"http://127.0.0.1:{console.port}/"
        page.on("request", lambda request: request.url.startswith((here, "data:")) or troubles.append(request.url))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(here + path.lstrip("/"))
        return page

    yield open
    for context in contexts:
        context.close()
    assert not troubles
