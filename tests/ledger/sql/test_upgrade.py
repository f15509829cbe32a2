from __future__ import annotations

import threading

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

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
