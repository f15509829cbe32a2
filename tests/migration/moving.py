"""The old application's processes beside those of Penstock, over one broker, all writing down what they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.polling import WAIT_SECONDS, until
from support.stack import Stack, lines

HERE = Path(__file__).parent
TESTS = HERE.parent


class Shop:
    """
    Attributes:
        mails, images: the old application's queues; the first is moved, the second stays.
        stack: Penstock's side.
    """

    def __init__(self, engine: str, broker_url: str, prefix: str, folder: Path, old_url: str) -> None:
        self.mails, self.images = f"{prefix}.mails-old", f"{prefix}.images-old"
        self.engine, self.folder, self.file = engine, folder, folder / "lines"
        self.stack = Stack(engine, broker_url, prefix, folder)
        self.env = {
            "SHOP_BROKER": old_url,
            "SHOP_MAILS": self.mails,
            "SHOP_IMAGES": self.images,
            "SHOP_FILE": str(self.file),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(TESTS)]),
        }
        self._old: list[subprocess.Popen[bytes]] = []

    def old(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process of the old application: `python -m` and this command."""
        log = (self.folder / f"old-{len(self._old)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=os.environ | self.env | env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._old.append(process)
        return process

    def call(self, code: str) -> Any:
        """Run some lines in a process of the old application's, as its web backend would. Returns their `answer`."""
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

    def take_over(self, module: str) -> None:
        """Start what consumes the mails from now on, instead of the old workers."""
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


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
