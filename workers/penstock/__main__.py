"""`python -m penstock` and the console script `penstock`: the command line."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any


def main() -> None:
    """Run a command. `probe` is asked every few seconds, and does not wait for the libraries of the others; a worker
    would keep that of the command line in its memory."""
    if sys.argv[1:2] == ["probe"]:
        from penstock.config.process import probe

        sys.exit(probe.main(sys.argv[2:]))
    if sys.argv[1:2] == ["worker"] and find_spec("typer") is not None:  # else the line below says what to install
        from penstock.workers.engines import command

        if (options := command.parse(sys.argv[2:])) is not None:
            from penstock.config import supervision

            with supervision.ends_in_time():
                sys.exit(_run_worker(options))
    from penstock.workers.cli import main as command_line

    command_line()


def _run_worker(options: dict[str, Any]) -> int:
    """The exit code, as `cli.common.errors.Commands` has it."""
    from penstock.config.errors import PenstockError
    from penstock.workers.engines.command import run

    try:
        return run(**options)
    except KeyboardInterrupt:
        from penstock.workers.cli.common.errors import INTERRUPTED

        return INTERRUPTED
    except PenstockError as error:
        from penstock.workers.cli.common.errors import report

        return report(error)


if __name__ == "__main__":
    main()
