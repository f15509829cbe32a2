"""`python -m penstock` and the console script `penstock`: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. `probe` is asked every few seconds, and does not wait for the libraries of the others."""
    if sys.argv[1:2] == ["probe"]:
        from penstock.config.process import probe

        sys.exit(probe.main(sys.argv[2:]))
    from penstock.workers.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
