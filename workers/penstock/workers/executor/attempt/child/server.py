"""Preload of the server that children are forked off: the handlers, so that a child is there in milliseconds.

It does so in the fork server alone. What to load is in its environment, since it gets no arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from penstock.workers.handlers import django_project

VARIABLE = "_PENSTOCK_CHILD_PRELOAD"

SOFT_LIMIT = signal.SIGUSR1
"""Signal of the worker to a child whose handler has reached its soft time limit."""

# Every process that a worker starts inherits the variable, and only its fork server is meant.
_is_fork_server = any("multiprocessing.forkserver" in word for word in sys.orig_argv)

Setup = tuple[str, Sequence[Any]]
"""A function, as `module:function`, and its arguments, which JSON can hold."""

_done: set[str] = set()
"""Setups that were called here, or in the fork server."""


def set_up(setup: Setup) -> None:
    """Call the function of a setup, unless this process or its fork server has called it."""
    key = json.dumps(setup)
    if key in _done:
        return
    module, _, name = setup[0].partition(":")
    getattr(importlib.import_module(module), name)(*setup[1])
    _done.add(key)


def load(setups: Sequence[Setup], modules: Sequence[str]) -> None:
    """Set up Django, call the setups and import the modules, as far as that has not been done."""
    django_project.set_up()
    for setup in setups:
        set_up(setup)
    for module in modules:
        importlib.import_module(module)
    django_project.add_task_handlers()


if (preload := os.environ.pop(VARIABLE, None)) and _is_fork_server:
    path, setups, modules = json.loads(preload)
    signal.signal(SOFT_LIMIT, signal.SIG_IGN)  # until the program of a child has its own handler
    sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
    with contextlib.suppress(Exception):  # each child does the same again, and reports what is wrong
        django_project.set_up()
    for name, arguments in setups:
        with contextlib.suppress(Exception):
            set_up((name, arguments))
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
