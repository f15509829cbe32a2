"""Preload of the server that children are forked off: the handlers, so that a child is there in milliseconds.

It does so in the fork server alone. The names of the modules are in its environment, since it gets no arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys

from penstock.workers.handlers import django_project

VARIABLE = "_PENSTOCK_CHILD_PRELOAD"

# Every process that a worker starts inherits the variable, and only its fork server is meant.
_is_fork_server = any("multiprocessing.forkserver" in word for word in sys.orig_argv)

if (preload := os.environ.pop(VARIABLE, None)) and _is_fork_server:
    path, modules = json.loads(preload)
    sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
    with contextlib.suppress(Exception):  # each child does the same again, and reports what is wrong
        django_project.set_up()
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
