"""Discovery: imports the modules that declare kinds, handlers and resources."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from penstock.config.errors import ConfigError

GROUP = "penstock.handlers"
"""Entry points of this group name modules; installing a package is enough for a worker to run its handlers."""


class ImportFailed(ConfigError):
    """A module of handlers cannot be imported.

    Attributes:
        trace: the traceback, from the module's own code on.
    """

    def __init__(self, module: str, trace: str) -> None:
        super().__init__(f"cannot import {module}")
        self.trace = trace


def discover(modules: Iterable[str] = ()) -> None:
    """Import every module that entry points announce, then `modules`.

    The working directory is put first on `sys.path`, as `python -m` does: people keep their handlers there.

    Raises:
        ImportFailed: one of them raises; the others are not tried.
    """
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    announced = [point.module for point in sorted(_announced(), key=lambda point: (point.name, point.value))]
    for module in [*announced, *modules]:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ImportFailed(module, _trace(error)) from error


def _announced() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _trace(error: BaseException) -> str:
    """The traceback without the frames of importlib and of this file, which hide the line that matters."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)]
    return "".join([*lines, *traceback.format_exception_only(error)])
