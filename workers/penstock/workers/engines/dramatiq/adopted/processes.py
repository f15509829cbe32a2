"""Processes that an application's middleware wants next to its workers, such as the server of `Prometheus`."""

from __future__ import annotations

import subprocess
import sys

import dramatiq

# It ends with its parents, however they end. A port may be in use until the worker before this one has ended.
_PROGRAM = """
import importlib, os, sys, threading, time
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
module, name = sys.argv[1:]
sys.path.insert(0, os.getcwd())
run = getattr(importlib.import_module(module), name)
while True:
    try:
        sys.exit(run())
    except OSError as error:
        print(f"{module}.{name}: {error}; it is tried again", file=sys.stderr)
        time.sleep(1)
"""

_PROPERTY = "forks"
_processes: list[subprocess.Popen[bytes]] = []


def start_processes(broker: dramatiq.Broker) -> None:
    """Start a process for each function in the property `forks` of the broker's middleware. These processes end when
    this one and all that were forked off it have ended."""
    for middleware in broker.middleware:
        for run in getattr(middleware, _PROPERTY):
            command = [sys.executable, "-c", _PROGRAM, run.__module__, run.__name__]
            _processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))  # noqa: S603  # the application's own
