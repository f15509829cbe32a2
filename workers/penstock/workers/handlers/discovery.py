"""Discovery: imports the modules that declare kinds, handlers and resources."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from penstock.config.errors import ConfigError
from penstock.workers.handlers import django_project

GROUP = "penstock.handlers"
"""Entry points of this group name modules; installing a package is enough for a worker to run its handlers."""


class ImportFailed(ConfigError):
    """A module of handlers cannot be imported, or a Django project not be set up.

    Attributes:
        trace: the traceback, from the module's own code on.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


def discover(modules: Iterable[str] = ()) -> list[str]:
    """Import every module that entry points announce, those of a Django project's apps, then `modules`.

    Returns those of `modules` that add no handler.

    The working directory is put first on `sys.path`, as `python -m` does: people keep their handlers there.

    Raises:
        ImportFailed: one of them raises; the others are not tried. ConfigError: Django is asked for and missing.
    """
    from penstock.workers.handlers.registry import handlers  # late: a command that imports no module needs none

    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    _set_up_django()  # first: modules may import models
    for point in sorted(_announced(), key=lambda point: (point.name, point.value)):
        _import(point.module)
    _import_apps()
    idle = []
    for module in modules:
        before, is_new = len(list(handlers)), module not in sys.modules
        _import(module)
        if is_new and len(list(handlers)) == before:
            idle.append(module)
    return idle


def discover_apps() -> None:
    """Import the modules of a Django project's apps, if `DJANGO_SETTINGS_MODULE` is set. Raises as `discover`."""
    _set_up_django()
    _import_apps()


def _set_up_django() -> None:
    try:
        django_project.set_up()
    except ConfigError:
        raise
    except Exception as error:
        variable = django_project.SETTINGS
        raise ImportFailed(
            f"cannot set up Django with {variable}={os.environ[variable]}: {type(error).__name__}: {error}; correct "
            "the variable or the project, or run this in the folder of manage.py",
            own_trace(error),
        ) from error


def _import_apps() -> None:
    for module in django_project.modules():
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ImportFailed(f"cannot import {module}", own_trace(error)) from error
    django_project.add_task_handlers()


def warn_idle(module: str) -> str:
    """Warning that a module was imported for a worker, and has no handler."""
    return (
        f"--import {module} adds no handler, so workers run nothing of it: a handler is declared with @handles; "
        "import the module that does so"
    )


def _announced() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def own_trace(error: BaseException) -> str:
    """The traceback without the frames of importlib and of discovery, which hide the line that matters."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (__file__, django_project.__file__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename not in ours]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)]
    return "".join([*lines, *traceback.format_exception_only(error)])
