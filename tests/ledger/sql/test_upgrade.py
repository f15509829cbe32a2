from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from support.ledgers import temporary_database
from support.servers.shared import POSTGRES_URL, need

from penstock.ledger.sql import upgrade
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import metadata


def test_the_migrations_make_exactly_the_tables(ledger: Database) -> None:
    def compare(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"version_table": upgrade.VERSION_TABLE, "compare_type": True}
        )
        return list(compare_metadata(context, metadata))

    assert ledger.read(compare) == []


def test_an_upgraded_ledger_is_at_the_head_and_upgrading_again_changes_nothing(ledger: Database) -> None:
    assert upgrade.current(ledger) == upgrade.head()
    assert upgrade.upgrade(ledger) == upgrade.head()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_an_upgrade_that_fails_changes_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0001 makes tables, and 0004 adds a column; MySQL and MariaDB commit each of them by itself."""

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    with ExitStack() as stack:
        if kind == "postgres":
            need("PostgreSQL")
            url = stack.enter_context(temporary_database(POSTGRES_URL))
        else:
            url = f"sqlite:///{tmp_path}/fresh.db"
        database = Database(url)
        stack.callback(database.close)
        with monkeypatch.context() as patched:
            patched.setattr(op, "add_column", fail)
            with pytest.raises(RuntimeError, match="no room"):
                upgrade.upgrade(database)
        assert database.read(lambda connection: sa.inspect(connection).get_table_names()) == []
        assert upgrade.upgrade(database) == upgrade.head()


def test_several_processes_may_upgrade_at_once(sqlite_url: str) -> None:
    errors: list[Exception] = []

    def run() -> None:
        database = Database(sqlite_url)  # as another process would, with a lock of its own
        try:
            upgrade.upgrade(database)
        except Exception as error:
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
