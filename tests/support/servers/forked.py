"""Processes forked from one that has imported what they need: imports take longer than most tests of a process.

Such a process has an environment, a folder, output and signals of its own, as one that was started from nothing.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_MOST_BYTES = 1_000_000


class Importer:
    """A process that has imported modules, and forks others.

    Arguments:
        modules: they start no thread and read no environment when they are imported.
    """

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._codes: dict[int, int] = {}

    def start(
        self,
        function: str,
        *words: str | Path,
        environment: Mapping[str, str],
        folder: Path,
        log: Any = None,
        **arguments: Any,
    ) -> Forked:
        """Run a function in a new process, whose exit code it returns.

        Arguments:
            function: `module:name`; the module is found on the `PYTHONPATH` of the environment, too.
            words: command line of the process, for a function that reads it.
            environment: all of it.
            folder: its working directory.
            log: file for its output and errors; None: those of this process.
            arguments: of the function, in JSON.
        """
        outputs = [1, 2] if log is None else [log.fileno()] * 2
        request = {"function": function, "words": [*map(str, words)], "arguments": arguments}
        request |= {"environment": {**environment}, "folder": str(folder)}
        socket.send_fds(self._socket, [json.dumps(request).encode()], outputs)
        while (pid := self._receive().get("started")) is None:
            pass
        return Forked(self, pid)

    def code(self, pid: int, seconds: float) -> int | None:
        """Exit code of a process that has ended, or ends within so many seconds; negative: of the signal."""
        deadline = time.monotonic() + seconds
        while pid not in self._codes:
            if not select.select([self._socket], [], [], max(deadline - time.monotonic(), 0))[0]:
                return None
            self._receive()
        return self._codes[pid]

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)

    def _receive(self) -> dict[str, Any]:
        data = self._socket.recv(_MOST_BYTES)
        assert data, "the process that imports has ended"
        answer: dict[str, Any] = json.loads(data)
        if "ended" in answer:
            self._codes[answer["ended"]] = answer["code"]
        return answer


class Forked:
    """A forked process, with the methods of `subprocess.Popen`."""

    def __init__(self, importer: Importer, pid: int) -> None:
        self._importer, self.pid = importer, pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._importer.code(self.pid, 0)

    def wait(self, timeout: float = 600) -> int:
        code = self._importer.code(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def importer(*modules: str) -> Importer:
    """The process that has imported these modules, until this one ends."""
    process = Importer(*modules)
    atexit.register(process.close)
    return process


def _serve(connection: socket.socket, modules: Sequence[str]) -> None:
    """Fork a process for each request, until the other end is closed."""
    for module in modules:
        importlib.import_module(module)

    def report_ended(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())

    signal.signal(signal.SIGCHLD, report_ended)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    while True:
        try:
            data, outputs, _, _ = socket.recv_fds(connection, _MOST_BYTES, 2)
        except ConnectionResetError:  # it has left answers unread
            return
        if not data:
            return
        # The end of a process is not reported before its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            connection.close()
            for number, output in enumerate(outputs, 1):
                os.dup2(output, number)
                os.close(output)
            _run_and_exit(json.loads(data))
        connection.send(json.dumps({"started": pid}).encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for output in outputs:
            os.close(output)


def _run_and_exit(request: dict[str, Any]) -> NoReturn:
    """End as an interpreter does, without the last second in which it deletes every object of all modules."""
    code = 1
    try:
        code = _run(**request) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(
    function: str, words: list[str], arguments: dict[str, Any], environment: dict[str, str], folder: str
) -> int | None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = words or [function]
    module, _, name = function.partition(":")
    code: int | None = getattr(importlib.import_module(module), name)(**arguments)
    return code


if __name__ == "__main__":
    del sys.path[0]  # this folder
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
