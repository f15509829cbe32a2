"""`manage.py penstock worker`, `manage.py penstock dispatcher` and so on: Penstock's command line for this project."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Replaces this process with `penstock`, which sets the project up by its settings.

    So a worker has nothing of `manage.py` in its memory, and its processes, signals and exit codes are its own.
    """

    help = "Run Penstock's command line for this project: manage.py penstock worker --queues default"

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        """Run the command.

        Arguments:
            argv: as Python has it. `--settings` and `--pythonpath`, which Django has read by now, may be anywhere.
        """
        words, paths = _without_djangos(argv[2:])
        if not argv[0].endswith("__main__.py"):  # `python -m django`
            paths.append(os.path.dirname(argv[0]) or ".")
        paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths if path))
        sys.stdout.flush()
        sys.stderr.flush()
        command = [sys.executable, "-m", "penstock", *words]
        os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path})  # noqa: S606  # the words are of the caller


def _without_djangos(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without Django's two options, and the values of `--pythonpath`."""
    rest = iter(words)
    ours: list[str] = []
    paths: list[str] = []
    for word in rest:
        name, has_value, value = word.partition("=")
        if name not in ("--settings", "--pythonpath"):
            ours.append(word)
            continue
        value = value if has_value else next(rest, "")
        if name == "--pythonpath":
            paths.append(value)
    return ours, paths
