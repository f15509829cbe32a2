"""The example application, `examples/adopt/celery`, with a worker of ours or of Celery's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from support.stack import Stack, lines

from penstock.schemas import registry
from penstock.workers.engines.celery.adopted.tasks import CeleryJob
from penstock.workers.handlers.registry import handlers

EXAMPLE = Path(__file__).parents[4] / "examples/adopt/celery"


class AdoptedShop:
    """The application here, as its web process has it, and Penstock's processes.

    Attributes:
        shop: the module.
        queue: the application's.
    """

    def __init__(self, broker_url: str, prefix: str, folder: Path, shop: ModuleType) -> None:
        self.stack = Stack("celery", broker_url, prefix, folder)
        self.shop, self.queue, self.file = shop, os.environ["SHOP_QUEUE"], Path(os.environ["SHOP_FILE"])

    def start(self) -> None:
        self.run("dispatcher")
        self.start_worker()

    def start_worker(self, *options: str) -> Any:
        return self.run("worker", "--queues", self.queue, *options)

    def run(self, command: str, *options: str) -> Any:
        return self.stack.run([command, "--celery", "shop:app", *options], PYTHONPATH=str(EXAMPLE))

    def start_stock_worker(self) -> subprocess.Popen[bytes]:
        """Celery's own worker."""
        command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "--pool", "threads", "--concurrency", "4"]
        with (self.stack.folder / "stock.log").open("wb") as log:
            environment = os.environ | {"PYTHONPATH": str(EXAMPLE)}
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.stack.folder)

    def lines(self) -> list[str]:
        return lines(self.file)


def forget_adopted() -> None:
    """Forget the kinds and handlers of adopted applications of Celery in this process; other tests have their own."""
    for kind in list(registry):
        if issubclass(kind.job, CeleryJob):
            registry.discard(kind)
            handlers.discard(kind)
