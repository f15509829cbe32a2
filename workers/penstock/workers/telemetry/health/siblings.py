"""`Siblings`: the processes of one worker, which answer for each other on the port that they share.

Whichever of them accepts a request asks the others over their sockets for `penstock probe`. Nothing is written down, so
a process that ends leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from penstock.config.process import probe

Check = Callable[[], str | None]
"""A question about the process: None means yes, and a text is the reason why not. Safe from any thread."""

_ANSWER_SECONDS = 1.5
"""Time limit for the others' answers; a request has five seconds."""


class Siblings:
    """The other processes of this worker.

    Arguments:
        group: the process id of their parent.
        number: of this process among them: the label `process` of its metrics.
    """

    def __init__(self, group: int, number: int) -> None:
        self.group, self._number = group, number

    def all(self, question: str, own: Check) -> Check:
        """Whether each process is well: the reason of the first that is not."""

        def check() -> str | None:
            return next((reason for reason in (own(), *self._reasons(question)) if reason is not None), None)

        return check

    def any(self, question: str, own: Check) -> Check:
        """Whether one process is well; else the reason of this one."""

        def check() -> str | None:
            reason = own()
            return None if reason is None or None in self._reasons(question) else reason

        return check

    def label(self, own: bytes) -> bytes:
        """The metrics of this process with its label."""
        return _labelled(own, self._number)

    def merge(self, own: bytes) -> bytes:
        """The metrics of all processes, each with its label.

        Arguments:
            own: those of this one, without label.
        """
        pids = {process["pid"] for process in self._others()}
        answers = [text for pid, text in probe.exchange(b"metrics", _ANSWER_SECONDS) if pid in pids]
        return _merged([self.label(own), *answers])

    def _reasons(self, question: str) -> list[str | None]:
        return [process[question] for process in self._others()]

    def _others(self) -> list[dict[str, Any]]:
        return [process for process in probe.ask(_ANSWER_SECONDS) if self._is_sibling(process)]

    def _is_sibling(self, process: dict[str, Any]) -> bool:
        pid = process["pid"]
        if pid == os.getpid() or not isinstance(pid, int):
            return False
        # One that does not answer does not say whose child it is.
        return process["group"] == self.group if "group" in process else _parent_of(pid) == self.group


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _labelled(text: bytes, number: int) -> bytes:
    """Metrics in Prometheus' text format, each sample with the label `process`."""
    label = f'process="{number}"'.encode()
    lines = []
    for line in text.splitlines():
        if line and not line.startswith(b"#"):
            brace, space = line.find(b"{"), line.find(b" ")
            if 0 <= brace < space:
                line = line[: brace + 1] + label + b"," + line[brace + 1 :]
            else:
                line = line[:space] + b"{" + label + b"}" + line[space:]
        lines.append(line)
    return b"\n".join([*lines, b""])


def _merged(texts: list[bytes]) -> bytes:
    """Metrics of several processes as one text, in which the samples of a metric stand together below its header."""
    headers: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for text in texts:
        name = b""
        for line in text.splitlines():
            if line.startswith(b"# HELP "):
                name = line.split(b" ", 3)[2]
                is_new = name not in headers
                headers.setdefault(name, [])
            if not line.startswith(b"#"):
                samples.setdefault(name, []).append(line)
            elif is_new:
                headers[name].append(line)
    return b"\n".join([line for name in headers for line in (*headers[name], *samples.get(name, ()))] + [b""])
