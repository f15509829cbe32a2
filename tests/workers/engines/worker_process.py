"""`python worker_process.py ENGINE NAME MODULE…`: a worker of these tests, its settings in the environment."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from penstock.config.settings import load_settings
from penstock.workers.engines import run_worker

sys.path.insert(0, str(Path(__file__).parent / "apps"))
logging.basicConfig(level="INFO")

if __name__ == "__main__":  # children of isolated handlers import this, too
    engine, name, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    sys.exit(run_worker(engine, load_settings(), queues=["engines"], concurrency=5, name=name))
