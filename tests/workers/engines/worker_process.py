"""`run`: a worker of these tests, its settings in the environment of its process."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

from penstock.config.settings import load_settings
from penstock.workers.engines import run_worker


def run(engine: str, name: str, modules: Sequence[str]) -> int:
    logging.basicConfig(level="INFO")
    for module in modules:
        importlib.import_module(module)
    return run_worker(engine, load_settings(), queues=["engines"], concurrency=5, name=name)
