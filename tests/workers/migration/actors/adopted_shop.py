"""The example application of Dramatiq's, with workers of its own or of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from moving import start_old
from support.polling import WAIT_SECONDS, until
from support.servers.shared import for_pika
from support.stack import Process, Stack, lines

from penstock.workers.local.up.redis_server import free_port

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "examples/adopt/dramatiq"


class AdoptedShop:
    """The application's processes, over a broker and a Redis for its results.

    Attributes:
        stack: Penstock's side, whose ledger has the messages that it runs.
        ours, dramatiqs: queues of the two kinds of worker.
    """

    def __init__(self, broker_url: str, redis_url: str, prefix: str, folder: Path) -> None:
        self.folder, self.diary = folder, folder / "diary.jsonl"
        self.stack = Stack("dramatiq", broker_url, prefix, folder)
        self.mails, self.images = f"{prefix}.mails-old", f"{prefix}.images-old"
        self.port = free_port()
        self.env = {
            "SHOP_BROKER": for_pika(broker_url) if broker_url.startswith("amqp") else broker_url,
            "SHOP_REDIS": redis_url,
            "SHOP_MAILS": self.mails,
            "SHOP_IMAGES": self.images,
            "SHOP_DIARY": str(self.diary),
            "PYTHONPATH": str(EXAMPLE),
            "dramatiq_prom_port": str(self.port),
            "dramatiq_prom_db": str(folder / "metrics"),
        }
        self._old: list[subprocess.Popen[bytes]] = []

    def call(self, code: str, **env: str) -> Any:
        """Run some lines as the application's web backend would. Returns their `answer`."""
        done = subprocess.run(
            [sys.executable, "-c", f"from shop import actors, web\n{code}\nimport json\nprint(json.dumps(answer))"],
            env=os.environ | self.env | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def penstock(self) -> dict[str, str]:
        """The settings of a process that sends to our queues itself."""
        settings = self.stack.settings
        return {"PENSTOCK_BROKER_URL": settings.broker_url, "PENSTOCK_PREFIX": settings.prefix}

    def consume(self) -> subprocess.Popen[bytes]:
        """Start Dramatiq's own worker."""
        command = ["dramatiq", "shop.actors", "--processes", "1", "--threads", "4"]
        process = start_old(command, self.env, self.folder / "old.log")
        self._old.append(process)
        return process

    def adopt(self, *options: str) -> Process:
        """Start our dispatcher and worker."""
        self.stack.run(["dispatcher", "--dramatiq", "shop.actors"], **self.env)
        return self.work(*options)

    def work(self, *options: str) -> Process:
        return self.stack.run(["worker", "--dramatiq", "shop.actors", "--concurrency", "4", *options], **self.env)

    def metrics(self) -> str:
        """Metrics of Dramatiq's own middleware, from the process that it wants."""
        try:
            return str(httpx.get(f"http://127.0.0.1:{self.port}/").text)
        except httpx.TransportError as error:
            raise AssertionError(f"no metrics: {error}") from error

    def noted(self) -> list[Any]:
        return sorted((json.loads(line) for line in lines(self.diary)), key=repr)

    def notes(self, *expected: Any) -> None:
        """Wait until the diary has exactly these lines, in any order."""
        diary = sorted(expected, key=repr)
        try:
            until(lambda: self.noted() == diary, "the diary")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.noted()}\n{self.stack.logs()}") from None

    def stop(self) -> None:
        for process in self._old:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT_SECONDS)
        self.stack.stop()
