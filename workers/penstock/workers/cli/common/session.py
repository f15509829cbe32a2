"""Session of a command: the settings and the ledger, which is closed when the command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from penstock.config.errors import PenstockError
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.output import echo

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.sql.database import Database


def open_settings() -> Settings:
    """The settings of the process; `[kinds.NAME]` holds from now on."""
    from penstock.config.settings import load_settings
    from penstock.schemas.jobs.overrides import override_kinds

    settings = load_settings()
    override_kinds(settings.kinds)
    return settings


@contextmanager
def open_ledger(settings: Settings | None = None) -> Iterator[Database]:
    from penstock.ledger.sql.database import Database

    database = Database((settings or open_settings()).database_url)
    try:
        yield database
    finally:
        database.close()


def for_each(ids: Sequence[str], action: Callable[[Database, str], object], done: str = "") -> None:
    """Apply an action to each id, and print `done` or else its result. A failure does not stop the others.

    Raises:
        Exit: (1) after the last id, if an action failed.
    """
    failed = False
    with open_ledger() as database:
        for item in ids:
            try:
                result = action(database, item)
                echo(f"{item} {done or result}")
            except PenstockError as error:
                failed = True
                echo(f"penstock: {error}", err=True)
    if failed:
        raise typer.Exit(FAILED)
