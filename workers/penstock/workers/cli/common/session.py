"""What commands open: the settings and the ledger, closed when the command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from penstock.config.errors import PenstockError
from penstock.workers.cli.common.errors import FAILED

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.sql.database import Database


def open_settings() -> Settings:
    from penstock.config.settings import load_settings

    return load_settings()


@contextmanager
def open_ledger(settings: Settings | None = None) -> Iterator[Database]:
    from penstock.ledger.sql.database import Database

    database = Database((settings or open_settings()).database_url)
    try:
        yield database
    finally:
        database.close()


def for_each(ids: Sequence[str], act: Callable[[Database, str], str]) -> None:
    """Do something to each of several of the ledger's, and say what became of it. One that fails does not stop the
    others.

    Raises:
        Exit: (1) when all are done and one failed.
    """
    failed = False
    with open_ledger() as database:
        for one in ids:
            try:
                typer.echo(f"{one} {act(database, one)}")
            except PenstockError as error:
                failed = True
                typer.echo(f"penstock: {error}", err=True)
    if failed:
        raise typer.Exit(FAILED)
