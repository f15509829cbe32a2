"""The examples as their servers run them: each a process, with a shop's database of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.workers.local.up.redis_server import free_port

BIN = Path(sys.executable).parent
EXAMPLES = Path(__file__).parents[3] / "examples"
SECRET = "only for tests, only for tests"

GUNICORN = ("gunicorn", "--threads", "8", "--workers", "2", "--bind", "127.0.0.1:{port}", "--no-control-socket")
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "{port}")


@dataclass(frozen=True)
class Example:
    """A folder under `examples`, how it is served, and a command to run before."""

    folder: str
    serve: tuple[str, ...]
    before: tuple[str, ...] = ()


TABLES = ("python", "-m", "acme.shop")
MANAGE = ("python", "manage.py", "migrate")
FRAMEWORKS = {
    "fastapi": Example("fastapi", (*UVICORN, "app:app"), TABLES),
    "starlette": Example("starlette", (*UVICORN, "app:app"), TABLES),
    "flask": Example("flask", (*GUNICORN, "--preload", "app:create_app()"), TABLES),
    "django": Example("django", (*GUNICORN, "--preload", "shop.wsgi"), MANAGE),
    "django-asgi": Example("django", (*UVICORN, "--lifespan", "off", "shop.asgi:application"), MANAGE),
    "drf": Example("drf", (*GUNICORN, "app"), ("python", "app.py")),
    "pyramid": Example("pyramid", (*GUNICORN, "app:create_app()"), TABLES),
    "tornado": Example("tornado", ("python", "app.py", "{port}"), TABLES),
}


def environment(settings: Settings, shop: Path) -> dict[str, str]:
    return os.environ | {
        "PENSTOCK_BROKER_URL": settings.broker_url,
        "PENSTOCK_DATABASE_URL": settings.database_url,
        "PENSTOCK_STORAGE_URL": settings.storage_url,
        "PENSTOCK_SMTP_URL": settings.smtp_url,
        "PENSTOCK_PREFIX": settings.prefix,
        "PENSTOCK_STOCK_QUEUES": "[]",
        "PENSTOCK_OUTBOX_URLS": json.dumps(settings.outbox_urls),
        "PENSTOCK_BROKER_TIMEOUT_SECONDS": str(settings.broker_timeout_seconds),
        "PYTHONPATH": str(EXAMPLES / "acme"),
        "PYTHONWARNINGS": "default::ResourceWarning",
        "SHOP_DATABASE": str(shop),
        "SHOP_DATABASE_URL": f"sqlite:///{shop}",
        "SHOP_SECRET": SECRET,
    }


class Site:
    """A running backend."""

    def __init__(self, name: str, settings: Settings, folder: Path, shop: Path) -> None:
        self.example, self.settings = FRAMEWORKS[name], settings
        self._environment = environment(settings, shop)
        self._cwd = EXAMPLES / self.example.folder
        self.log = folder / "server.log"
        self.port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        if self.example.before:
            assert self._run(self.example.before).wait(WAIT_SECONDS) == 0, self.text
        self._process = self._run([part.format(port=self.port) for part in self.example.serve])

    def _run(self, command: Any) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [BIN / command[0], *command[1:]], cwd=self._cwd, env=self._environment, stdout=log, stderr=log
            )

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            try:
                self.client.get("/penstock/ready")
            except httpx.TransportError:
                return False
            return True

        until(answers, unless=lambda: self._process.poll() is not None and self.text)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def post(self, path: str, headers: Mapping[str, str] = {}, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def events(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        """Events of a browser's EventSource, until the end."""
        events = []
        with self.client.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    events.append((name, json.loads(value)))
        return events

    def stop(self) -> int:
        self.client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@contextmanager
def running(name: str, settings: Settings, folder: Path, shop: Path) -> Iterator[Site]:
    site = Site(name, settings, folder, shop)
    try:
        site.wait_until_it_answers()
        yield site
    finally:
        code = site.stop()
    assert code in (0, -signal.SIGTERM), site.text  # uvicorn ends by the signal it was sent
    for word in ("Traceback", "ResourceWarning", "never awaited"):
        assert word not in site.text, site.text
