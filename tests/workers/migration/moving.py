"""The old application's processes next to Penstock's, over one broker; all write down their runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.polling import WAIT_SECONDS, until
from support.stack import Stack, lines

HERE = Path(__file__).parent
TESTS = HERE.parents[1]


def start_old(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process of an old application in the folder of its log: `python -m` and this command."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | env,
            cwd=log.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


class Shop:
    """The old application, and Penstock's processes.

    Attributes:
        engine: `celery` or `dramatiq`, as the old application uses.
        send, id: names of the method that sends a message, and of the message's id.
        mails, images: the old application's queues; the first is moved, the second stays.
        stack: Penstock's side.
    """

    engine: str
    send: str
    id: str

    def __init__(self, broker_url: str, prefix: str, folder: Path, old_url: str) -> None:
        self.mails, self.images = f"{prefix}.mails-old", f"{prefix}.images-old"
        self.folder, self.file = folder, folder / "lines"
        self.stack = Stack(self.engine, broker_url, prefix, folder)
        self.env = {
            "SHOP_BROKER": old_url,
            "SHOP_MAILS": self.mails,
            "SHOP_IMAGES": self.images,
            "SHOP_FILE": str(self.file),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(TESTS)]),
        }
        self._old: list[subprocess.Popen[bytes]] = []

    def consume(self, *queues: str, **env: str) -> subprocess.Popen[bytes]:
        """Start an old worker of these queues."""
        raise NotImplementedError

    def send_later(self, order: str) -> str:
        """Code of a call that sends a receipt in a second."""
        raise NotImplementedError

    def old(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process of the old application: `python -m` and this command."""
        process = start_old(command, self.env | env, self.folder / f"old-{len(self._old)}.log")
        self._old.append(process)
        return process

    def call(self, code: str) -> Any:
        """Run some lines in a process of the old application's, as its web backend would. Returns their `answer`."""
        code = f"from {self.engine}_shop import receipt, resize\n{code}"
        code += "\nimport json\nprint(json.dumps(answer))" if "answer" in code else ""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def take_over(self) -> None:
        """Start what consumes the mails from now on, instead of the old workers."""
        module = f"{self.engine}_shop_moved"
        env = self.env | {"PENSTOCK_STOCK_QUEUES": json.dumps([self.mails])}
        self.stack.run(["dispatcher", "--import", module], **env)
        self.stack.run(
            ["worker", "--engine", self.engine, "--queues", self.mails, "--concurrency", "5", "--import", module], **env
        )

    def ran(self, *expected: str) -> None:
        """Wait until the line of each was written."""
        try:
            until(lambda: set(expected) <= set(lines(self.file)))
        except AssertionError:
            missing = set(expected) - set(lines(self.file))
            raise AssertionError(f"not run: {missing}\n{lines(self.file)}\n{self.stack.logs()}") from None

    def stop(self) -> None:
        for process in [*self._old, *self.stack.processes]:
            if process.poll() is None:
                process.terminate()  # all at once, and then wait for each
        for process in self._old:
            stop(process)
        self.stack.stop()


class CeleryShop(Shop):
    engine, send, id = "celery", "delay", "id"

    def consume(self, *queues: str, **env: str) -> subprocess.Popen[bytes]:
        """A Celery worker under a name of its own: on RabbitMQ a second one of a name cannot start."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--pool", "solo"]
        chosen = ["-Q", ",".join(queues)] if queues else []
        name = f"{uuid.uuid4().hex}@%h"
        return self.old("celery", "-A", "celery_shop", "worker", "-n", name, *quiet, *chosen, **env)

    def send_later(self, order: str) -> str:
        return f"apply_async(({order!r},), countdown=1)"


class DramatiqShop(Shop):
    engine, send, id = "dramatiq", "send", "message_id"

    def consume(self, *queues: str, **env: str) -> subprocess.Popen[bytes]:
        small = ("--processes", "1", "--threads", "2")
        return self.old("dramatiq", "dramatiq_shop", *small, "--queues", *queues, **env)

    def send_later(self, order: str) -> str:
        return f"send_with_options(args=({order!r},), delay=1000)"


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
