"""`run`: a worker of these tests, its settings in the environment of its process."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Sequence

from penstock.config.settings import load_settings
from penstock.workers.engines import run_worker


def run(engine: str, name: str, modules: Sequence[str]) -> int:
    logging.basicConfig(level="INFO")
    for module in modules:
        importlib.import_module(module)
    return run_worker(engine, load_settings(), queues=["engines"], concurrency=5, name=name)


def run_as_guest(engine: str, name: str, modules: Sequence[str]) -> int:
    """Run it in a thread. Returns 3 if something would end the process later, though the worker has stopped."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(engine, name, modules)))
    thread.start()
    thread.join()
    return 3 if any(thread.name == "penstock exit" for thread in threading.enumerate()) else codes[0]
